#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "data/batch.h"
#include "kernels/random.h"
#include "tests/data/data_support.h"
#include "tests/data/hdf5_maker.h"

namespace ringlet::test {

namespace {

namespace fs = std::filesystem;

class DamagedCorpusTest : public testing::Test {
 protected:
  /// Opening must fail with these words and the file's name, within two seconds.
  void expect_refused(const std::string& path, std::vector<std::string> words) const {
    words.push_back(fs::path(path).filename());
    const auto start = std::chrono::steady_clock::now();
    expect_error([&] { Corpus::open(path); }, words);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(kSanitized ? 10 : 2));
  }
  /// A corpus of two documents, the names of its datasets and attributes as they are.
  /// With answers at tokens 5, 6, 40, 41, 42 and 90.
  std::string good_with_answers() const {
    return write_counting_corpus(folder_.file("answers.h5"), {70, 30},
                                 {{{5, 5}, {6, 5}, {40, 3}, {41, 3}, {42, 9}}, {{20, 20}}});
  }
  std::string good() const { return write_counting_corpus(folder_.file("good.h5"), {70, 30}); }

  const Folder folder_;
};

TEST_F(DamagedCorpusTest, FilesThatAreNoCorpus) {
  expect_refused(folder_.file("missing.h5"), {"cannot open", "No such file"});
  expect_refused(folder_.path(), {"not a regular file"});
  expect_refused(folder_.write("empty.h5", ""), {"0 bytes"});
  expect_refused(folder_.write("short.h5", "\x89HDF"), {"4 bytes"});
  expect_refused(folder_.write("text.h5", std::string(5000, 'a')), {"not an HDF5 file"});
  expect_refused(folder_.write("noise.h5", random_bytes(5000, 1)), {"not an HDF5 file"});
  ASSERT_EQ(mkfifo(folder_.file("pipe.h5").c_str(), 0600), 0);
  expect_refused(folder_.file("pipe.h5"), {"not a regular file"});
}

TEST_F(DamagedCorpusTest, TruncatedAnywhere) {
  const std::string whole = read_file(good());
  for (size_t bytes = 1; bytes < whole.size(); bytes += bytes < 200 ? 7 : 307) {
    expect_refused(folder_.write("cut.h5", whole.substr(0, bytes)), {});
  }
  expect_refused(folder_.write("cut.h5", whole.substr(0, whole.size() - 1)), {});
}

TEST_F(DamagedCorpusTest, DatasetsOfAnotherKind) {
  const std::string path = folder_.file("f.h5");
  { const Hdf5Maker maker(path); }
  expect_refused(path, {"no dataset /tokens"});
  {
    const Hdf5Maker maker(path);
    H5Gclose(H5Gcreate2(maker.id(), "tokens", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
  }
  expect_refused(path, {"/tokens is not a dataset"});
  { Hdf5Maker(path).add("tokens", {1, 2, 3}, {H5T_IEEE_F32LE}); }
  expect_refused(path, {"/tokens is not a list of whole numbers"});
  { Hdf5Maker(path).add("tokens", {1, -2, 3}, {H5T_STD_I32LE}); }
  expect_refused(path, {"/tokens holds -2 at place 1"});
  { Hdf5Maker(path).add("tokens", {1, int64_t{1} << 40}, {H5T_STD_I64LE}); }
  expect_refused(path, {"/tokens holds 1099511627776 at place 1"});
  { Hdf5Maker(path).add("tokens", {}); }
  expect_refused(path, {"no tokens"});
  {
    const Hdf5Maker maker(path);
    const hsize_t extent[] = {10, 10};
    const Hdf5Handle space(H5Screate_simple(2, extent, nullptr), H5Sclose, "make", path);
    H5Dclose(H5Dcreate2(maker.id(), "tokens", H5T_STD_U16LE, space, H5P_DEFAULT, H5P_DEFAULT,
                        H5P_DEFAULT));
  }
  expect_refused(path, {"/tokens is not a list"});
}

TEST_F(DamagedCorpusTest, LinksAndDataInOtherFiles) {
  const std::string path = folder_.file("f.h5");
  const std::string target = good();
  {
    const Hdf5Maker maker(path);
    maker.add("elsewhere", {1, 2, 3});
    H5Lcreate_soft("/elsewhere", maker.id(), "tokens", H5P_DEFAULT, H5P_DEFAULT);
  }
  expect_refused(path, {"/tokens is a link"});
  {
    const Hdf5Maker maker(path);
    H5Lcreate_external(target.c_str(), "/tokens", maker.id(), "tokens", H5P_DEFAULT, H5P_DEFAULT);
  }
  expect_refused(path, {"/tokens is a link"});
  const hsize_t count = 16;
  const Hdf5Handle space(H5Screate_simple(1, &count, nullptr), H5Sclose, "make", path);
  {
    const Hdf5Maker maker(path);
    const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "make", path);
    H5Pset_external(creation, folder_.write("secret", std::string(32, 's')).c_str(), 0, 32);
    H5Dclose(
        H5Dcreate2(maker.id(), "tokens", H5T_STD_U16LE, space, H5P_DEFAULT, creation, H5P_DEFAULT));
  }
  expect_refused(path, {"/tokens is stored in another file"});
  {
    const Hdf5Maker maker(path, Hdf5Maker::Superblock::with_checksums);
    const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "make", path);
    H5Pset_virtual(creation, space, target.c_str(), "/tokens", space);
    H5Dclose(
        H5Dcreate2(maker.id(), "tokens", H5T_STD_U16LE, space, H5P_DEFAULT, creation, H5P_DEFAULT));
  }
  expect_refused(path, {"/tokens is a virtual dataset"});
}

TEST_F(DamagedCorpusTest, SizesThatAreNotThere) {
  const std::string path = folder_.file("f.h5");
  const auto claim = [&](hsize_t count, hsize_t chunk) {
    const Hdf5Maker maker(path);
    const Hdf5Handle space(H5Screate_simple(1, &count, nullptr), H5Sclose, "make", path);
    const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "make", path);
    if (chunk > 0) H5Pset_chunk(creation, 1, &chunk);
    H5Dclose(
        H5Dcreate2(maker.id(), "tokens", H5T_STD_U16LE, space, H5P_DEFAULT, creation, H5P_DEFAULT));
  };
  claim(hsize_t{1} << 40, 1 << 16);
  expect_refused(path, {"/tokens claims 2199023255552 bytes, but only 0 are stored"});
  claim(hsize_t{1} << 40, 0);
  expect_refused(path, {"/tokens claims"});
  claim(1000, 0);  // never written: no place in the file
  expect_refused(path, {"/tokens"});
  claim(1 << 24, 1 << 24);
  expect_refused(path, {"/tokens is stored in chunks"});
}

TEST_F(DamagedCorpusTest, OffsetsThatAreNoDocuments) {
  const std::string path = folder_.file("f.h5");
  const auto make = [&](const std::vector<int64_t>& offsets) {
    const Hdf5Maker maker(path);
    maker.add("tokens", {1, 2, 3, 4});
    maker.add("document_offsets", offsets, {H5T_STD_U64LE});
  };
  for (const std::vector<int64_t>& offsets :
       {std::vector<int64_t>{0}, {1, 4}, {0, 3}, {0, 5}, {0, 2, 2, 4}, {0, 3, 2, 4}, {0, -1, 4}}) {
    make(offsets);
    expect_refused(path, {"/document_offsets"});
  }
}

TEST_F(DamagedCorpusTest, CorporaOfOursThatContradictThemselves) {
  const auto expect_changed_refused = [&](const char* attribute, int64_t value, const char* words) {
    const std::string path = good();
    change_hdf5(path, [&](hid_t file) { set_integer(file, attribute, value); });
    expect_refused(path, {words});
  };
  expect_changed_refused("complete", 0, "not completed");
  expect_changed_refused("version", 2, "version 2");
  expect_changed_refused("token_count", 101, "do not agree");
  expect_changed_refused("document_count", 1, "do not agree");
  expect_changed_refused("block_tokens", 1 << 10, "do not agree");
  expect_changed_refused("vocabulary", 0, "vocabulary 0");
  expect_changed_refused("end_of_document", 257, "end of document 257");
  const std::string path = good();
  change_hdf5(path, [](hid_t file) { H5Adelete(file, "complete"); });
  expect_refused(path, {"not completed"});
  change_hdf5(good(), [](hid_t file) { H5Ldelete(file, "block_checksums", H5P_DEFAULT); });
  expect_refused(path, {"do not agree"});
}

TEST_F(DamagedCorpusTest, AFileWhoseWriterDiedIsRefused) {
  const std::string path = good();
  EXPECT_EQ(run_in_child([&] {
              const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
              H5Adelete(file, "created_by");
              return H5Fflush(file, H5F_SCOPE_GLOBAL) < 0 ? 1 : 0;  // never closed
            }),
            0);
  expect_refused(path, {"already open for write"});
}

TEST_F(DamagedCorpusTest, TokensBeyondTheVocabularyAreFoundByEveryRead) {
  const std::string path = good();
  change_hdf5(path, [](hid_t file) {
    set_integer(file, "vocabulary", 60);
    set_integer(file, "end_of_document", 59);
  });
  const Corpus corpus = Corpus::open(path);
  const WindowReader reader(corpus, 50);
  const Piece all{0, 1, 0, 50};
  EXPECT_EQ(reader.read(0, std::span(&all, 1)).tokens[49], 49);
  expect_error([&] { (void)reader.read(1, std::span(&all, 1)); }, {"good.h5", "token 60 is 60"});
}

TEST_F(DamagedCorpusTest, OtherDocumentOffsetsAreFoundByVerify) {
  const std::string path = good();
  change_hdf5(path, [&](hid_t file) {
    const Hdf5Handle offsets(H5Dopen2(file, "document_offsets", H5P_DEFAULT), H5Dclose, "open",
                             path);
    const int64_t values[] = {0, 60, 100};
    H5Dwrite(offsets, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values);
  });
  expect_error([&] { Corpus::open(path).verify(); }, {"good.h5", "/document_offsets is damaged"});
}

TEST_F(DamagedCorpusTest, AnswersThatCannotBe) {
  const std::string path = folder_.file("f.h5");
  const auto make = [&](const std::vector<int64_t>& answers, const std::vector<int64_t>& distances) {
    const Hdf5Maker maker(path);
    maker.add("tokens", {1, 2, 3, 4, 5, 6});
    maker.add("document_offsets", {0, 3, 6}, {H5T_STD_U64LE});
    maker.add("answers", answers, {H5T_STD_I64LE});
    if (!distances.empty()) maker.add("answer_distances", distances, {H5T_STD_U64LE});
  };
  make({1, 2, 5}, {1, 2, 2});
  EXPECT_EQ(Corpus::open(path).answers().size(), 3u);
  make({1, 2, 5}, {1, 2});
  expect_refused(path, {"/answers has 3 values, /answer_distances 2"});
  make({1}, {});
  expect_refused(path, {"/answers has 1 values, /answer_distances 0"});
  make({6}, {1});
  expect_refused(path, {"/answers names token 6 at place 0"});
  make({2, 2}, {1, 1});
  expect_refused(path, {"/answers names token 2 at place 1"});
  make({2, 1}, {1, 1});
  expect_refused(path, {"/answers names token 1 at place 1"});
  make({-1}, {1});
  expect_refused(path, {"/answers holds -1"});
  make({1}, {0});
  expect_refused(path, {"/answer_distances has 0 at place 0"});
  make({1}, {2});
  expect_refused(path, {"/answer_distances has 2 at place 0, 1 tokens into"});
  make({1, 3}, {1, 1});  // the first of its document
  expect_refused(path, {"/answer_distances has 1 at place 1, 0 tokens into"});
}

TEST_F(DamagedCorpusTest, AnswersOfOursThatWereChanged) {
  const auto change = [&](const char* dataset, std::vector<int64_t> values) {
    const std::string path = good_with_answers();
    change_hdf5(path, [&](hid_t file) {
      const Hdf5Handle list(H5Dopen2(file, dataset, H5P_DEFAULT), H5Dclose, "open", path);
      H5Dwrite(list, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data());
    });
    expect_error([&] { Corpus::open(path).verify(); },
                 {"answers.h5", "/answers or /answer_distances is damaged"});
  };
  change("answers", {5, 6, 40, 41, 43, 90});
  change("answer_distances", {5, 5, 3, 3, 9, 19});
  const std::string path = good_with_answers();
  change_hdf5(path, [](hid_t file) { set_integer(file, "answer_count", 5); });
  expect_refused(path, {"do not agree"});
  change_hdf5(good_with_answers(), [](hid_t file) {
    H5Ldelete(file, "answers", H5P_DEFAULT);
    H5Ldelete(file, "answer_distances", H5P_DEFAULT);
  });
  expect_refused(path, {"do not agree"});
}

TEST_F(DamagedCorpusTest, AFileThatIsCutWhileItIsReadIsAnError) {
  const std::string path = good();
  const Corpus corpus = Corpus::open(path);
  fs::resize_file(path, 10);
  expect_error([&] { all_tokens(corpus); }, {"good.h5 ends at byte"});
}

/// Flips one random bit at a time and opens the file. Returns how many were refused; what opens and
/// verifies must hold what it held.
int64_t count_refused_flips(const std::string& path, int64_t flips, uint64_t seed, bool checked) {
  const Corpus good = Corpus::open(path);
  const auto tokens = all_tokens(good);
  const File file = File::open_to_write(path);
  const CounterRandom random(seed, 2);
  int64_t refused = 0;
  for (int64_t i = 0; i < flips; ++i) {
    // half of them in the first 2 KiB, where the structure is
    const int64_t size = file.size_bytes();
    const auto range = uint64_t(i % 2 == 0 ? std::min<int64_t>(2048, size) : size);
    const auto place = int64_t(random.bits(uint64_t(2 * i)) % range);
    std::byte old{};
    file.read(place, std::span(&old, 1));
    const std::byte changed = old ^ std::byte(1 << random.bits(uint64_t(2 * i + 1)) % 8);
    file.write(place, std::span(&changed, 1));
    try {
      const Corpus corpus = Corpus::open(path);
      corpus.verify();
      if (checked) {
        EXPECT_EQ(all_tokens(corpus), tokens) << "bit flip at byte " << place;
        EXPECT_EQ(corpus.document_count(), good.document_count()) << place;
        EXPECT_EQ(corpus.vocabulary(), good.vocabulary()) << place;
        EXPECT_TRUE(std::ranges::equal(corpus.answers(), good.answers())) << place;
        EXPECT_TRUE(std::ranges::equal(corpus.answer_distances(), good.answer_distances())) << place;
        EXPECT_EQ(corpus.fingerprint(), good.fingerprint()) << place;
      }
    } catch (const Error& error) {
      ++refused;
    }
    file.write(place, std::span(&old, 1));
  }
  return refused;
}

TEST_F(DamagedCorpusTest, EveryFlippedBitOfOursIsAnErrorOrHarmless) {
  const int64_t flips = kSanitized ? 200 : 1000;
  EXPECT_GT(count_refused_flips(good(), flips, 1, true), flips / 4);
  EXPECT_GT(count_refused_flips(good_with_answers(), flips / 10, 4, true), flips / 40);
}

// Without checksums on the structure a flip may change what the file means; it must not end the
// program.
TEST_F(DamagedCorpusTest, FlippedBitsOfOthersNeverCrash) {
  if (kSanitized) GTEST_SKIP() << "faults of the HDF5 library, in its child, would be reported";
  const std::string plain = folder_.file("plain.h5"), packed = folder_.file("packed.h5");
  std::vector<int64_t> values;
  for (int64_t i = 0; i < 3000; ++i) values.push_back(i % 200);
  { Hdf5Maker(plain).add("tokens", values); }
  { Hdf5Maker(packed).add("tokens", values, {H5T_STD_I32LE, 500, 1, true, true}); }
  const int64_t flips = 400;
  EXPECT_GT(count_refused_flips(plain, flips, 2, false), 0);
  EXPECT_GT(count_refused_flips(packed, flips, 3, false), 0);
}

}  // namespace

}  // namespace ringlet::test
