#include "train/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "kernels/check.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/support/checkpoint_case.h"

namespace ringlet::test {
namespace {

/// Any header in front of `data_bytes` zeros, as a file.
std::filesystem::path write_raw(const ScratchFolder& scratch, const std::string& header,
                                size_t data_bytes, uint64_t header_bytes) {
  const auto path = scratch.path() / "raw.safetensors";
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&header_bytes), 8);
  file << header << std::string(data_bytes, '\0');
  return path;
}

bool is_refused(const ScratchFolder& scratch, const std::string& header, size_t data_bytes) {
  const auto path = write_raw(scratch, header, data_bytes, header.size());
  try {
    SafetensorsFile file(path);
    return false;
  } catch (const Error& error) {
    return !error.advice.empty();
  }
}

TEST(Safetensors, EachMegabyteIsReportedWhenWrittenAndWhenReadBack) {
  ScratchFolder scratch;
  const auto path = scratch.path() / "a.safetensors";
  const std::vector<float> values(5 << 18);
  int64_t blocks = 0;
  int reports = 0;
  const auto count_write = [&] {
    const int64_t megabytes = int64_t(std::filesystem::file_size(path) >> 20);
    EXPECT_LE(megabytes, blocks + 1) << "more than a block since the last report";
    blocks = megabytes;
  };
  const auto size = int64_t(values.size());
  write_safetensors(path, std::vector<NamedValues>{{"t", {size}, values}}, {}, count_write);
  EXPECT_EQ(blocks, 5);
  read_back(path, [&] { ++reports; });
  EXPECT_EQ(reports, 6);  // five megabytes and the header
}

// Values of a device are read in blocks; they may fill several, the last one in part.
TEST(Safetensors, ValuesOfADeviceGoToTheFileBlockByBlock) {
  ScratchFolder scratch;
  const auto path = scratch.path() / "a.safetensors";
  Trace trace;
  const auto device = make_cpu_backend(int64_t{1} << 24, trace, 1);
  const int64_t rows = 700, columns = 1001;
  const Tensor tensor = device->arena().allocate("values", Dtype::f32, {rows, columns, 1, 1});
  std::vector<float> values(size_t(rows * columns), 0);
  for (size_t i = 0; i < values.size(); ++i) values[i] = float(i);
  upload<float>(*device, values, tensor);
  size_t blocks = 0;
  SavedValues(*device, tensor).visit([&](std::span<const float>) { ++blocks; });
  EXPECT_EQ(blocks, 3);
  write_safetensors(path, std::vector<NamedValues>{{"t", {rows, columns}, {*device, tensor}}}, {});
  std::vector<float> found(values.size());
  SafetensorsFile(path).read("t", 0, found);
  EXPECT_EQ(found, values);
}

TEST(Safetensors, ReadsBackBitForBit) {
  ScratchFolder scratch;
  const auto path = scratch.path() / "a.safetensors";
  const std::vector<float> matrix{1.5f, -0.0f, 3e-45f, 1e38f, 5, 6}, scalar{7};
  const std::vector<NamedValues> tensors{{"m", {2, 3}, matrix},
                                         {"empty", {0, 4}, {}},
                                         {"s", {}, scalar},
                                         {"ünï\"code\n", {1}, scalar}};
  const Written written = write_safetensors(path, tensors, {{"key", "value"}});
  EXPECT_EQ(written.bytes, static_cast<int64_t>(std::filesystem::file_size(path)));
  EXPECT_EQ(written.checksum, read_back(path).checksum);

  const SafetensorsFile file(path);
  EXPECT_EQ(file.metadata(), (Metadata{{"key", "value"}}));
  EXPECT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(file.tensors().at("m").shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(file.tensors().at("m").first_byte % 4, 0);
  std::vector<float> all(6), middle(2), one(1), none;
  file.read("m", 0, all);
  EXPECT_TRUE(equal_bits(all, matrix));
  file.read("m", 3, middle);
  EXPECT_TRUE(equal_bits(middle, std::span(matrix).subspan(3, 2)));
  file.read("s", 0, one);
  EXPECT_TRUE(equal_bits(one, scalar));
  file.read("empty", 0, none);
  EXPECT_THROW(file.read("m", 5, middle), Error);
  EXPECT_THROW(file.read("m", -1, middle), Error);
  EXPECT_THROW(file.read("other", 0, middle), Error);
}

// The layout that the format's own library writes, byte for byte.
TEST(Safetensors, WritesTheFormat) {
  ScratchFolder scratch;
  const auto path = scratch.path() / "a.safetensors";
  const std::vector<float> values{1, 2};
  write_safetensors(path, std::vector<NamedValues>{{"t", {2}, values}}, {});
  const std::string header = R"({"t":{"data_offsets":[0,8],"dtype":"F32","shape":[2]}})";
  const std::string text = read_text(path, 1000);
  const size_t header_bytes = (header.size() + 7) / 8 * 8;
  uint64_t length = 0;
  std::memcpy(&length, text.data(), 8);
  EXPECT_EQ(length, header_bytes);
  EXPECT_EQ(text.substr(8, header.size()), header);
  EXPECT_EQ(text.substr(8 + header.size(), header_bytes - header.size()).find_first_not_of(' '),
            std::string::npos);
  ASSERT_EQ(text.size(), 8 + header_bytes + 8);
  EXPECT_EQ(std::memcmp(text.data() + 8 + header_bytes, values.data(), 8), 0);
}

TEST(Safetensors, RefusesWhatCannotBeWritten) {
  ScratchFolder scratch;
  const auto path = scratch.path() / "a.safetensors";
  const std::vector<float> values{1, 2};
  const auto write = [&](const std::vector<NamedValues>& tensors) {
    write_safetensors(path, tensors, {});
  };
  EXPECT_THROW(write({{"t", {3}, values}}), Error);
  EXPECT_THROW(write({{"t", {2}, values}, {"t", {2}, values}}), Error);
  write({{"t", {2}, values}});
  EXPECT_THROW(write({{"t", {2}, values}}), Error) << "the file is there already";
}

TEST(Safetensors, AcceptsTheGoodTwinOfTheHostileHeaders) {
  ScratchFolder scratch;
  EXPECT_FALSE(is_refused(scratch, R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8));
  EXPECT_FALSE(is_refused(
      scratch,
      R"({"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},)"
      R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"__metadata__":{"k":"v"}}   )",
      8));
}

TEST(Safetensors, RefusesHostileHeaders) {
  ScratchFolder scratch;
  const auto tensor = [](const std::string& dtype, const std::string& shape,
                         const std::string& offsets) {
    return R"({"t":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets +
           "}}";
  };
  const std::string hostile[] = {
      "",
      "{",
      "[]",
      "null",
      "\"text\"",
      "{\"t\":5}",
      "{\"t\":{}}",
      "\xff\xfe",
      tensor("\"BF16\"", "[4]", "[0,8]"),
      tensor("3", "[2]", "[0,8]"),
      tensor("\"F32\"", "[3]", "[0,8]"),
      tensor("\"F32\"", "[2]", "[0,12]"),
      tensor("\"F32\"", "[2]", "[4,12]"),
      tensor("\"F32\"", "[2]", "[8,0]"),
      tensor("\"F32\"", "[1]", "[0,4]"),
      tensor("\"F32\"", "[1]", "[4,8]"),
      tensor("\"F32\"", "[-2]", "[0,8]"),
      tensor("\"F32\"", "[2.0]", "[0,8]"),
      tensor("\"F32\"", "2", "[0,8]"),
      tensor("\"F32\"", "{\"a\":2}", "[0,8]"),
      tensor("\"F32\"", "[2]", "[0]"),
      tensor("\"F32\"", "[2]", "[0,8,8]"),
      tensor("\"F32\"", "[2]", "[-8,0]"),
      tensor("\"F32\"", "[2]", "{\"a\":0,\"b\":8}"),
      tensor("\"F32\"", "[4611686018427387904,4]", "[0,0]"),
      tensor("\"F32\"", "[4294967296,4294967296]", "[0,0]"),
      tensor("\"F32\"", "[2]", "[18446744073709551608,0]"),
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],)"
      R"("data_offsets":[4,8]}})",
      R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"t":{"dtype":"F32","shape":[2],)"
      R"("data_offsets":[0,8]}})",
      R"({"__metadata__":{"k":5},"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
      std::string(1'000'000, '['),
      std::string("{\"t\":") + std::string(1'000'000, '['),
  };
  for (const std::string& header : hostile) {
    EXPECT_TRUE(is_refused(scratch, header, 8)) << header.substr(0, 200);
  }
}

TEST(Safetensors, RefusesHostileLengths) {
  ScratchFolder scratch;
  const std::string header = R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  for (const uint64_t length :
       {uint64_t{0}, uint64_t{1}, header.size() - 1, header.size() + 1, header.size() + 9,
        uint64_t{100'000'001}, uint64_t{1} << 63, ~uint64_t{0}}) {
    EXPECT_THROW(SafetensorsFile(write_raw(scratch, header, 8, length)), Error) << length;
  }
  const auto path = write_raw(scratch, header, 8, header.size());
  for (uintmax_t bytes = std::filesystem::file_size(path); bytes-- > 0;) {
    std::filesystem::resize_file(path, bytes);
    EXPECT_THROW(SafetensorsFile{path}, Error) << bytes;
  }
  EXPECT_THROW(SafetensorsFile{scratch.path()}, Error) << "a folder";
  EXPECT_THROW(SafetensorsFile{scratch.path() / "absent"}, Error);
}

}  // namespace
}  // namespace ringlet::test
