// SPDX-License-Identifier: Apache-2.0
// Ops for tests and benches only: Arcflow>TouchBytes reads every byte of a tensor, Arcflow>Address
// tells where it lies.
#include <cstdint>
#include <cstring>

#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace arcflow::tf {
namespace {

using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

void SetScalar(OpKernelContext* ctx, std::uint64_t value) {
  Tensor* out = nullptr;
  OP_REQUIRES_OK(ctx, ctx->allocate_output(0, TensorShape({}), &out));
  out->scalar<int64_t>()() = static_cast<int64_t>(value);
}

/// Sum of the 64-bit words of one cache line.
std::uint64_t LineSum(const char* at) {
  std::uint64_t words[8];
  std::memcpy(words, at, sizeof words);
  std::uint64_t sum = 0;
  for (const std::uint64_t word : words) sum += word;
  return sum;
}

/// Sum of the tensor's 64-bit words; then of the bytes left. Large tensors are read at four places
/// at a time, 64 KiB apart, because one stream alone waits for memory some of the time.
class TouchBytesOp final : public tensorflow::OpKernel {
 public:
  using OpKernel::OpKernel;
  void Compute(OpKernelContext* ctx) override {
    constexpr std::ptrdiff_t kLine = 64;
    constexpr std::ptrdiff_t kApart = 64 << 10;
    constexpr std::ptrdiff_t kStride = 4 * kApart;
    const auto bytes = ctx->input(0).tensor_data();
    const char* at = bytes.data();
    const char* const end = at + bytes.size();
    std::uint64_t sums[4] = {};
    for (; end - at >= kStride; at += kStride) {
      for (const char* line = at; line < at + kApart; line += kLine) {
        for (int i = 0; i < 4; ++i) sums[i] += LineSum(line + i * kApart);
      }
    }
    std::uint64_t sum = sums[0] + sums[1] + sums[2] + sums[3];
    for (; end - at >= kLine; at += kLine) sum += LineSum(at);
    for (; at < end; ++at) sum += static_cast<unsigned char>(*at);
    SetScalar(ctx, sum);
  }
};

class AddressOp final : public tensorflow::OpKernel {
 public:
  using OpKernel::OpKernel;
  void Compute(OpKernelContext* ctx) override {
    SetScalar(ctx, reinterpret_cast<std::uintptr_t>(ctx->input(0).tensor_data().data()));
  }
};

REGISTER_OP("Arcflow>TouchBytes")
    .Input("x: T")
    .Output("sum: int64")
    .Attr("T: {float, double, int8, int16, int32, int64, uint8, bool}")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape);
REGISTER_KERNEL_BUILDER(Name("Arcflow>TouchBytes").Device(tensorflow::DEVICE_CPU), TouchBytesOp);

REGISTER_OP("Arcflow>Address")
    .Input("x: T")
    .Output("address: int64")
    .Attr("T: {float, double, int8, int16, int32, int64, uint8, bool}")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape);
REGISTER_KERNEL_BUILDER(Name("Arcflow>Address").Device(tensorflow::DEVICE_CPU), AddressOp);

}  // namespace
}  // namespace arcflow::tf
