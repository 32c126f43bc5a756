// The CUDA module and the machine under it, missing or broken in every way: one line each, and no crash.
#include "kernels/cuda_module.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "tests/support/program.h"
#include "tests/support/training_case.h"

namespace ringlet::test {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

void expect_refused(const fs::path& path, const std::string& cause) {
  const CudaModule module = open_cuda_module(path);
  EXPECT_EQ(module.interface, nullptr) << path;
  EXPECT_THAT(module.trouble, HasSubstr(cause));
  EXPECT_THAT(module.trouble, HasSubstr("--preset cuda"));
  EXPECT_EQ(std::ranges::count(module.trouble, '\n'), 0) << module.trouble;
}

TEST(CudaModule, WrongPath) {
  TemporaryFolder folder;
  expect_refused(folder.path() / "libringlet_cuda.so", "module not built");
  expect_refused(folder.path() / "no" / "such" / "folder.so", "module not built");
}

TEST(CudaModule, FileThatIsNoLibrary) {
  TemporaryFolder folder;
  const fs::path file = folder.path() / "libringlet_cuda.so";
  for (const std::string& text : {std::string(), std::string("text"), std::string(5000, '\0')}) {
    write_text(file, text);
    expect_refused(file, "module cannot be loaded: " + file.string());
  }
  expect_refused(folder.path(), "module cannot be loaded: " + folder.path().string());
}

TEST(CudaModule, HalfALibrary) {
  TemporaryFolder folder;
  const fs::path file = folder.path() / "libringlet_cuda.so";
  fs::copy_file(RINGLET_OTHER_INTERFACE, file);
  fs::resize_file(file, 300);
  expect_refused(file, "module cannot be loaded: " + file.string());
}

TEST(CudaModule, LibraryOfAnotherKind) {
  expect_refused(RINGLET_FAKE_DRIVER, "is no CUDA module of Ringlet");
}

TEST(CudaModule, AnotherInterface) {
  expect_refused(RINGLET_OTHER_INTERFACE,
                 "module has interface " + std::to_string(kCudaInterfaceVersion + 1) +
                     ", this program needs " + std::to_string(kCudaInterfaceVersion));
}

/// The program alone in a folder, and `doctor` in it.
struct CudaDoctorTest : testing::Test {
  TemporaryFolder temporary;
  const fs::path folder = temporary.path();
  const fs::path program = folder / "ringlet", module = folder / "libringlet_cuda.so";

  CudaDoctorTest() { fs::copy_file(RINGLET_PROGRAM, program); }

  /// What doctor says about CUDA, after it was checked that text and JSON agree and nothing else was printed.
  std::string doctor(std::vector<std::string> environment = {}) {
    environment.insert(environment.end(), {program.string(), "doctor"});
    const ProgramResult text = run_program("/usr/bin/env", environment, folder);
    environment.push_back("--json");
    const ProgramResult json = run_program("/usr/bin/env", environment, folder);
    EXPECT_EQ(text.exit_code, 0) << text.errors;
    EXPECT_EQ(json.exit_code, 0) << json.errors;
    EXPECT_EQ(text.errors + json.errors, "");
    const auto findings = nlohmann::json::parse(json.output)["findings"];
    for (const auto& finding : findings) {
      if (finding["name"] != "CUDA") continue;
      const std::string value = finding["value"];
      EXPECT_THAT(text.output, HasSubstr("\nCUDA             " + value + "\n"));
      return value;
    }
    return "nothing about CUDA";
  }

  /// Training and verification on a GPU end with a line of cause and one of advice, and leave nothing behind.
  void expect_refused_work(const std::string& cause, const std::vector<std::string>& environment = {}) {
    write_text(folder / "small.toml",
               "[model]\nlayers = 1\nwidth = 32\nheads = 4\nmlp_width = 48\n[data]\ncorpus = \"" +
                   make_corpus(temporary, 1, "corpus-" + std::to_string(++corpora_)) +
                   "\"\n[run]\nseq_len = 96\n[train]\nsteps = 2\n");
    for (const std::vector<std::string>& command :
         {std::vector<std::string>{"train", "small.toml"}, {"verify", "--quick"}, {"verify", "small.toml"}}) {
      std::vector<std::string> words = environment;
      words.push_back(program.string());
      words.insert(words.end(), command.begin(), command.end());
      words.insert(words.end(), {"--device", "cuda"});
      const ProgramResult result = run_program("/usr/bin/env", words, folder);
      EXPECT_EQ(result.exit_code, 1) << result.errors;
      EXPECT_THAT(result.errors, testing::StartsWith("ringlet: " + cause));
      EXPECT_EQ(std::ranges::count(result.errors, '\n'), 2) << result.errors;
      EXPECT_EQ(result.output, "");
      EXPECT_FALSE(fs::exists(folder / "runs"));
    }
  }

 private:
  int corpora_ = 0;
};

TEST_F(CudaDoctorTest, WithoutAModule) {
  EXPECT_EQ(doctor(), "module not built (cmake --preset cuda); training runs on the CPU");
  expect_refused_work("no CUDA: module not built (cmake --preset cuda)");
}

TEST_F(CudaDoctorTest, ModuleThatIsNoLibrary) {
  write_text(module, "text");
  EXPECT_THAT(doctor(), HasSubstr("module cannot be loaded: " + module.string()));
  expect_refused_work("no CUDA: module cannot be loaded: " + module.string());
}

TEST_F(CudaDoctorTest, ModuleWithAnotherInterface) {
  fs::copy_file(RINGLET_OTHER_INTERFACE, module);
  EXPECT_THAT(doctor(), HasSubstr("module has interface "));
  expect_refused_work("no CUDA: module has interface ");
}

/// With the real module, on drivers of the test's choosing. Skipped where it was not built: where the environment
/// does not name it (it must be there then), nor is it beside the program.
struct CudaDriverTest : CudaDoctorTest {
  void SetUp() override {
    const char* named = std::getenv("RINGLET_CUDA_MODULE");
    const fs::path built = named != nullptr
                               ? fs::path(named)
                               : fs::path(RINGLET_PROGRAM).parent_path() / module.filename();
    if (named == nullptr && !fs::exists(built)) {
      GTEST_SKIP() << "the CUDA module was not built (cmake --preset cuda)";
    }
    fs::copy_file(built, module);
  }

  /// With the fake driver: what it serves, and what its start gives.
  static std::vector<std::string> on_driver(int driver_version, int status) {
    const fs::path driver = fs::path(RINGLET_FAKE_DRIVER).parent_path();
    return {"LD_LIBRARY_PATH=" + driver.string(), "FAKE_DRIVER_VERSION=" + std::to_string(driver_version),
            "FAKE_DRIVER_STATUS=" + std::to_string(status)};
  }
};

TEST_F(CudaDriverTest, NoDriver) {
  write_text(folder / "libcuda.so.1", "no library, and found before any that is one");
  const std::vector<std::string> environment{"LD_LIBRARY_PATH=" + folder.string()};
  EXPECT_EQ(doctor(environment), "module found, no driver; training runs on the CPU");
  expect_refused_work("no GPU: no driver", environment);
}

TEST_F(CudaDriverTest, OldDriver) {
  const std::string trouble = "the driver is for CUDA 11.4, too old for CUDA 1";
  EXPECT_THAT(doctor(on_driver(11040, 0)), testing::StartsWith("module found, " + trouble));
  expect_refused_work("no GPU: " + trouble, on_driver(11040, 0));
}

TEST_F(CudaDriverTest, NoGpu) {
  constexpr int kNoDevice = 100;  // CUDA_ERROR_NO_DEVICE
  EXPECT_EQ(doctor(on_driver(99000, kNoDevice)),
            "module found, a driver, but no GPU that this program may use; training runs on the CPU");
  expect_refused_work("no GPU: a driver, but no GPU that this program may use", on_driver(99000, kNoDevice));
}

TEST_F(CudaDriverTest, DriverThatDoesNotStart) {
  constexpr int kSystemNotReady = 802;  // CUDA_ERROR_SYSTEM_NOT_READY
  EXPECT_THAT(doctor(on_driver(99000, kSystemNotReady)),
              testing::StartsWith("module found, CUDA does not start: "));
  expect_refused_work("no GPU: CUDA does not start: ", on_driver(99000, kSystemNotReady));
}

// Whatever there is: devices that make sense, or one line.
TEST_F(CudaDriverTest, DriverOfThisMachine) {
  const CudaModule opened = open_cuda_module(module);
  ASSERT_NE(opened.interface, nullptr) << opened.trouble;
  const CudaMachine machine = opened.interface->examine();
  EXPECT_GE(machine.runtime_version, 12000);
  EXPECT_EQ(machine.trouble.empty(), !machine.devices.empty()) << machine.trouble;
  EXPECT_EQ(std::ranges::count(machine.trouble, '\n'), 0) << machine.trouble;
  for (size_t i = 0; i < machine.devices.size(); ++i) {
    const CudaDevice& device = machine.devices[i];
    EXPECT_EQ(device.trouble, "");
    EXPECT_NE(device.name, "");
    EXPECT_GE(device.compute_capability, 80);
    EXPECT_GT(device.multiprocessor_count, 0);
    EXPECT_GT(device.free_bytes, 0);
    EXPECT_LE(device.free_bytes, device.total_bytes);
    for (const int32_t peer : device.peers) {
      EXPECT_NE(peer, int32_t(i));
      EXPECT_LT(size_t(peer), machine.devices.size());
    }
  }
}

}  // namespace
}  // namespace ringlet::test
