// SPDX-License-Identifier: Apache-2.0
// Tensors that are, or are copied from, columns in shared memory.
#include "batch_tensors.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "plugins/tensorflow/recycled_buffer.h"
#include "status.h"
#include "tensorflow/core/framework/allocation_description.pb.h"
#include "tensorflow/core/framework/types.pb.h"

namespace arcflow::tf {
namespace {

using tensorflow::DataType;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::tstring;

constexpr bool SameNumber(columnar::DType ours, DataType theirs) {
  return static_cast<int>(ours) == static_cast<int>(theirs);
}
static_assert(SameNumber(columnar::DType::kFloat32, tensorflow::DT_FLOAT));
static_assert(SameNumber(columnar::DType::kFloat64, tensorflow::DT_DOUBLE));
static_assert(SameNumber(columnar::DType::kInt32, tensorflow::DT_INT32));
static_assert(SameNumber(columnar::DType::kUInt8, tensorflow::DT_UINT8));
static_assert(SameNumber(columnar::DType::kInt16, tensorflow::DT_INT16));
static_assert(SameNumber(columnar::DType::kInt8, tensorflow::DT_INT8));
static_assert(SameNumber(columnar::DType::kString, tensorflow::DT_STRING));
static_assert(SameNumber(columnar::DType::kInt64, tensorflow::DT_INT64));
static_assert(SameNumber(columnar::DType::kBool, tensorflow::DT_BOOL));

/// Bytes of a leased segment as the memory of a tensor.
class LeaseBuffer final : public tensorflow::TensorBuffer {
 public:
  LeaseBuffer(std::span<const std::byte> bytes, std::shared_ptr<const feed::SegmentView> lease)
      : TensorBuffer(
            const_cast<std::byte*>(bytes.data())),  // NOLINT: never written, see OwnsMemory
        size_(bytes.size()),
        lease_(std::move(lease)) {}

  size_t size() const override { return size_; }
  TensorBuffer* root_buffer() override { return this; }
  void FillAllocationDescription(tensorflow::AllocationDescription* proto) const override {
    proto->set_requested_bytes(static_cast<std::int64_t>(size_));
    proto->set_allocator_name("arcflow_feed");
  }
  /// False makes RefCountIsOne() false, so that no kernel takes the buffer for its output.
  bool OwnsMemory() const override { return false; }

 private:
  const std::size_t size_;
  const std::shared_ptr<const feed::SegmentView> lease_;
};

absl::Status ShapeOf(std::size_t rows, const columnar::Column& column, TensorShape* out) {
  TensorShape shape;
  TF_RETURN_IF_ERROR(shape.AddDimWithStatus(static_cast<std::int64_t>(rows)));
  for (const std::int64_t dim : column.row_shape) TF_RETURN_IF_ERROR(shape.AddDimWithStatus(dim));
  *out = shape;
  return absl::OkStatus();
}

absl::Status NoMemory(const columnar::Column& column) {
  return absl::ResourceExhaustedError("no memory for a batch of column '" + column.name + "'");
}

/// From here on a tensor that rows are copied into takes recycled memory: fresh pages would cost
/// more than the copy.
constexpr std::size_t kRecycleBytes = 128 << 10;

/// A tensor of no particular content; without memory when there is none.
Tensor Uninitialized(tensorflow::Allocator* allocator, DataType type, const TensorShape& shape) {
  const auto bytes =
      static_cast<std::size_t>(shape.num_elements() * tensorflow::DataTypeSize(type));
  if (bytes >= kRecycleBytes) {
    const auto buffer = RecycledMemory::Global().Take(bytes);
    if (buffer.data != nullptr) return RecycledTensor(buffer, bytes, type, shape);
  }
  return Tensor(allocator, type, shape);
}

Tensor StringTensor(const std::vector<std::string_view>& values, const TensorShape& shape,
                    tensorflow::Allocator* allocator) {
  Tensor tensor(allocator, tensorflow::DT_STRING, shape);
  auto flat = tensor.flat<tstring>();
  for (std::size_t i = 0; i < values.size(); ++i) {
    flat(static_cast<Eigen::Index>(i)).assign(values[i].data(), values[i].size());
  }
  return tensor;
}

/// The bytes as a tensor that keeps their segment leased.
Tensor LeasedTensor(std::span<const std::byte> bytes, const feed::Batch& batch, DataType type,
                    TensorShape shape) {
  tensorflow::core::RefCountPtr<tensorflow::TensorBuffer> buffer(
      new LeaseBuffer(bytes, batch.pieces.front().segment));
  return Tensor(type, std::move(shape), std::move(buffer));
}

}  // namespace

DataType TypeOf(columnar::DType dtype) { return static_cast<DataType>(dtype); }

absl::Status ColumnTensor(const feed::Batch& batch, const columnar::Schema& schema,
                          std::size_t column, tensorflow::Allocator* allocator, Tensor* out) {
  const columnar::Column& type = schema.columns[column];
  TensorShape shape;
  TF_RETURN_IF_ERROR(ShapeOf(batch.rows(), type, &shape));
  if (type.dtype == columnar::DType::kString) {
    std::vector<std::string_view> values;
    TF_RETURN_IF_ERROR(ToTf(feed::StringColumn(batch, column, &values)));
    *out = StringTensor(values, shape, allocator);
    return absl::OkStatus();
  }
  if (const std::span<const std::byte> bytes = feed::DenseView(batch, column); !bytes.empty()) {
    *out = LeasedTensor(bytes, batch, TypeOf(type.dtype), std::move(shape));
    return absl::OkStatus();
  }
  Tensor tensor = Uninitialized(allocator, TypeOf(type.dtype), shape);
  if (!tensor.IsInitialized()) return NoMemory(type);
  const auto bytes = std::as_writable_bytes(
      std::span<char>(static_cast<char*>(tensor.data()), tensor.AllocatedBytes()));
  const std::size_t wanted = batch.rows() * type.row_bytes();
  TF_RETURN_IF_ERROR(ToTf(feed::CopyColumn(batch, schema, column, bytes.first(wanted))));
  *out = std::move(tensor);
  return absl::OkStatus();
}

absl::Status ItemsTensor(const feed::Batch& batch, const columnar::Column& type,
                         const feed::RaggedRows& rows, tensorflow::Allocator* allocator,
                         Tensor* out) {
  TensorShape shape;
  TF_RETURN_IF_ERROR(ShapeOf(static_cast<std::size_t>(rows.splits.back()), type, &shape));
  if (const std::span<const std::byte> bytes = feed::DenseItems(batch, rows); !bytes.empty()) {
    *out = LeasedTensor(bytes, batch, TypeOf(type.dtype), std::move(shape));
    return absl::OkStatus();
  }
  Tensor tensor = Uninitialized(allocator, TypeOf(type.dtype), shape);
  if (!tensor.IsInitialized()) return NoMemory(type);
  feed::CopyItems(rows, static_cast<std::byte*>(tensor.data()));
  *out = std::move(tensor);
  return absl::OkStatus();
}

Tensor SplitsTensor(const feed::RaggedRows& rows, tensorflow::Allocator* allocator) {
  Tensor tensor(allocator, tensorflow::DT_INT64,
                TensorShape({static_cast<std::int64_t>(rows.splits.size())}));
  std::copy(rows.splits.begin(), rows.splits.end(), tensor.flat<std::int64_t>().data());
  return tensor;
}

absl::Status ArrayStringsTensor(const feed::Batch& batch, const columnar::Schema& schema,
                                std::size_t lengths, std::size_t bytes,
                                tensorflow::Allocator* allocator, Tensor* out) {
  std::vector<std::string_view> values;
  TF_RETURN_IF_ERROR(ToTf(feed::ArrayStrings(batch, schema, lengths, bytes, &values)));
  const columnar::Column& type = schema.columns[lengths];
  TensorShape shape({static_cast<std::int64_t>(values.size())});
  if (!type.variable()) TF_RETURN_IF_ERROR(ShapeOf(batch.rows(), type, &shape));
  *out = StringTensor(values, shape, allocator);
  return absl::OkStatus();
}

Tensor WeightTensor(const feed::Batch& batch, tensorflow::Allocator* allocator) {
  Tensor tensor(allocator, tensorflow::DT_FLOAT,
                TensorShape({static_cast<std::int64_t>(batch.rows())}));
  auto flat = tensor.flat<float>();
  std::fill_n(flat.data(), batch.real_rows(), 1.0F);
  std::fill_n(flat.data() + batch.real_rows(), batch.padding, 0.0F);
  return tensor;
}

}  // namespace arcflow::tf
