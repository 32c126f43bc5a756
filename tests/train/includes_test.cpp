#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace ringlet {
namespace {

namespace fs = std::filesystem;

struct Include {
  std::string from,
      target;  // from: path below the source folder; target: as written, without quotes
};

bool is_source(const fs::path& path) {
  const std::string ending = path.extension().string();
  return ending == ".h" || ending == ".cpp" || ending == ".cu";
}

/// Every include of the folders named.
std::vector<Include> includes_of(const std::vector<std::string>& folders) {
  std::vector<Include> found;
  const fs::path root(RINGLET_SOURCE_DIR);
  for (const std::string& folder : folders) {
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      if (!is_source(entry.path())) continue;
      std::ifstream stream(entry.path());
      for (std::string line; std::getline(stream, line);) {
        const size_t begin = line.find_first_of("\"<");
        if (!line.starts_with("#include") || begin == std::string::npos) continue;
        const size_t end = line.find_first_of("\">", begin + 1);
        found.push_back(
            {fs::relative(entry.path(), root).string(), line.substr(begin + 1, end - begin - 1)});
      }
    }
  }
  return found;
}

std::string folder_of(const std::string& path) { return path.substr(0, path.find('/')); }

const std::vector<std::string> kFolders{"kernels", "model", "data", "train"};

bool is_ours(const std::string& folder) {
  return folder == "tests" || std::find(kFolders.begin(), kFolders.end(), folder) != kFolders.end();
}

// What a folder may include besides itself.
const std::map<std::string, std::set<std::string>> kAllowed{
    {"kernels", {}},
    {"model", {"kernels"}},
    {"data", {"kernels"}},
    {"train", {"kernels", "model", "data"}},
};

TEST(Includes, GoOneWayOnly) {
  const std::vector<Include> includes = includes_of(kFolders);
  EXPECT_GT(includes.size(), 300u);
  for (const auto& [from, target] : includes) {
    const std::string here = folder_of(from), there = folder_of(target);
    if (!is_ours(there) || here == there) continue;
    EXPECT_TRUE(kAllowed.at(here).contains(there)) << from << " includes " << target;
  }
}

TEST(Includes, DataKnowsOnlyTheBaseHeadersOfKernels) {
  const std::set<std::string> base{"kernels/check.h", "kernels/tensor.h", "kernels/random.h",
                                   "kernels/use_all_cores.h"};
  for (const auto& [from, target] : includes_of({"data"})) {
    if (folder_of(target) != "kernels") continue;
    EXPECT_TRUE(base.contains(target)) << from << " includes " << target;
  }
}

TEST(Includes, OnlyDevicesKnowTheirFiles) {
  for (const auto& [from, target] : includes_of({"model", "data"})) {
    EXPECT_FALSE(target.starts_with("kernels/cpu/") || target.starts_with("kernels/comm/"))
        << from << " includes " << target;
  }
}

// Headers that take seconds to compile, and libraries that belong to one folder.
TEST(Includes, LibrariesStayWhereTheyBelong) {
  const std::vector<std::pair<std::string, std::set<std::string>>> homes{
      {"CLI/", {"train/cli"}}, {"toml++/", {"train/config_toml.cpp"}},
      {"hdf5", {"data"}},          {"sentencepiece", {"data"}},
      {"hwy/", {"kernels"}},       {"cblas", {"kernels"}},
      {"cuda", {"kernels/cuda/"}}, {"cub", {"kernels/cuda/"}},
      {"nccl", {"kernels/cuda/"}},
  };
  for (const auto& [from, target] : includes_of(kFolders)) {
    for (const auto& [library, home] : homes) {
      if (!target.starts_with(library)) continue;
      const auto is_home = [&](const std::string& path) { return from.starts_with(path); };
      EXPECT_TRUE(std::ranges::any_of(home, is_home)) << from << " includes " << target;
    }
    EXPECT_FALSE(target.starts_with("nlohmann/json.hpp") && from.ends_with(".h"))
        << from << ": JSON belongs into a .cpp";
  }
}

TEST(Includes, NoFileIncludesWhatIsNotThere) {
  for (const auto& [from, target] : includes_of(kFolders)) {
    if (!is_ours(folder_of(target)) || target.find('/') == std::string::npos) continue;
    EXPECT_TRUE(fs::exists(fs::path(RINGLET_SOURCE_DIR) / target))
        << from << " includes " << target;
  }
}

}  // namespace
}  // namespace ringlet
