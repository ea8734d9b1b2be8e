// SPDX-License-Identifier: Apache-2.0
// What `rdma` says when something is missing: each case built as files, as the kernel would.
#include "arcflow/transport/ucx/ucx_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace arcflow::transport::ucx {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class CheckRdmaDevicesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "arc-rdma-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    root = name;
  }
  void TearDown() override { fs::remove_all(root); }
  void AddPort(const std::string& device, const std::string& state) {
    const fs::path port = root / "sys/class/infiniband" / device / "ports/1";
    fs::create_directories(port);
    std::ofstream(port / "state") << state << "\n";
  }
  std::string Check() {
    return CheckRdmaDevices((root / "sys").string(), (root / "dev").string()).ToString();
  }
  fs::path root;
};

TEST_F(CheckRdmaDevicesTest, NoDevice) {
  EXPECT_THAT(Check(), HasSubstr("there is no RDMA device"));
}

TEST_F(CheckRdmaDevicesTest, NoActivePort) {
  AddPort("mlx5_0", "1: DOWN");
  EXPECT_THAT(Check(), HasSubstr("mlx5_0 port 1 1: DOWN"));
}

TEST_F(CheckRdmaDevicesTest, NoUverbsNode) {
  AddPort("mlx5_0", "4: ACTIVE");
  EXPECT_THAT(Check(), HasSubstr("has no uverbs node"));
}

TEST_F(CheckRdmaDevicesTest, NoPermission) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may open everything";
  AddPort("mlx5_0", "4: ACTIVE");
  fs::create_directories(root / "dev/infiniband");
  std::ofstream(root / "dev/infiniband/uverbs0") << "";
  ::chmod((root / "dev/infiniband/uverbs0").c_str(), 0);
  EXPECT_THAT(Check(), HasSubstr("may not be opened"));
}

TEST_F(CheckRdmaDevicesTest, AllThere) {
  AddPort("mlx5_0", "4: ACTIVE");
  fs::create_directories(root / "dev/infiniband");
  std::ofstream(root / "dev/infiniband/uverbs0") << "";
  EXPECT_EQ(Check(), "OK");
}

}  // namespace
}  // namespace arcflow::transport::ucx
