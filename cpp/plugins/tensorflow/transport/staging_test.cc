// SPDX-License-Identifier: Apache-2.0
// Staging against a device whose memory is not what the host reads: a copy that is left out shows.
#include "plugins/tensorflow/transport/staging.h"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "tensorflow/core/framework/device_attributes.pb.h"
#include "tensorflow/core/framework/device_base.h"

namespace arcflow::tf {
namespace {

using tensorflow::AllocatorAttributes;
using tensorflow::Tensor;

constexpr char kCode = 0x5a;  // the device keeps every byte so

void Copy(const Tensor& from, Tensor* to) {
  const auto* const in = static_cast<const char*>(from.data());
  auto* const out = static_cast<char*>(to->data());
  for (std::size_t i = 0; i < from.TotalBytes(); ++i) out[i] = static_cast<char>(in[i] ^ kCode);
}

/// Copies later, on a thread of its own, as an accelerator does.
class FakeContext : public tensorflow::DeviceContext {
 public:
  ~FakeContext() override {
    for (std::thread& each : threads_) each.join();
  }
  void CopyCPUTensorToDevice(const Tensor* cpu, tensorflow::Device*, Tensor* device,
                             tensorflow::StatusCallback done, bool) const override {
    threads_.emplace_back([=, this] {
      if (status.ok()) Copy(*cpu, device);
      done(status);
    });
  }
  void CopyDeviceTensorToCPU(const Tensor* device, absl::string_view, tensorflow::Device*,
                             Tensor* cpu, tensorflow::StatusCallback done) override {
    threads_.emplace_back([=, this] {
      if (status.ok()) Copy(*device, cpu);
      done(status);
    });
  }
  absl::Status status;

 private:
  mutable std::vector<std::thread> threads_;
};

class FakeDevice : public tensorflow::Device {
 public:
  explicit FakeDevice(const std::string& type)
      : Device(tensorflow::Env::Default(), Attributes(type)) {}
  absl::Status Sync() override { return absl::OkStatus(); }
  tensorflow::Allocator* GetAllocator(AllocatorAttributes attributes) override {
    asked = attributes;
    return tensorflow::cpu_allocator();
  }
  AllocatorAttributes asked;

 private:
  static tensorflow::DeviceAttributes Attributes(const std::string& type) {
    tensorflow::DeviceAttributes attributes;
    attributes.set_name("/job:worker/replica:0/task:0/device:" + type + ":0");
    attributes.set_device_type(type);
    return attributes;
  }
};

class StagingTest : public ::testing::Test {
 protected:
  StagingTest() : values_(tensorflow::DT_FLOAT, {1000}), coded_(tensorflow::DT_FLOAT, {1000}) {
    for (int i = 0; i < 1000; ++i) values_.flat<float>()(i) = static_cast<float>(i);
    Copy(values_, &coded_);
  }
  static bool Same(const Tensor& a, const Tensor& b) {
    return a.TotalBytes() == b.TotalBytes() && std::memcmp(a.data(), b.data(), a.TotalBytes()) == 0;
  }

  FakeDevice gpu_{"GPU"};
  Tensor values_;
  Tensor coded_;  // the same, as the device keeps it
};

TEST_F(StagingTest, OnlyAcceleratorsMemoryIsStaged) {
  AllocatorAttributes on_host;
  on_host.set_on_host(true);
  EXPECT_TRUE(OnAccelerator(gpu_, {}));
  EXPECT_FALSE(OnAccelerator(gpu_, on_host));
  EXPECT_FALSE(OnAccelerator(FakeDevice("CPU"), {}));
}

TEST_F(StagingTest, ATensorGoesOutIntoPinnedMemory) {
  Tensor sut;
  {
    FakeContext context;
    Tensor gone = coded_;  // the caller need not keep it
    StageOut(gone, &gpu_, &context, [&](const absl::Status& status, const Tensor& host) {
      EXPECT_TRUE(status.ok()) << status;
      sut = host;
    });
    gone = Tensor();
  }
  EXPECT_TRUE(gpu_.asked.on_host() && gpu_.asked.gpu_compatible());
  EXPECT_EQ(sut.shape(), values_.shape());
  EXPECT_TRUE(Same(sut, values_));
}

TEST_F(StagingTest, HostMemoryGoesIntoATensorOfTheDevice) {
  Tensor sut(tensorflow::DT_FLOAT, {1000});
  {
    FakeContext context;
    Tensor gone = values_;
    StageIn(gone, &gpu_, &context, sut,
            [](const absl::Status& status) { EXPECT_TRUE(status.ok()) << status; });
    gone = Tensor();
  }
  EXPECT_TRUE(Same(sut, coded_));
}

TEST_F(StagingTest, ErrorsOfTheDeviceAreTold) {
  int told = 0;
  {
    FakeContext context;
    context.status = absl::InternalError("the device is lost");
    StageOut(coded_, &gpu_, &context, [&](const absl::Status& status, const Tensor&) {
      ++told;
      EXPECT_EQ(status.message(), "the device is lost");
    });
  }
  StageIn(values_, &gpu_, nullptr, coded_, [&](const absl::Status& status) {
    ++told;
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  });
  EXPECT_EQ(told, 2);
}

}  // namespace
}  // namespace arcflow::tf
