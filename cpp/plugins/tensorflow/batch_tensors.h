// SPDX-License-Identifier: Apache-2.0
// Makes tensors of the columns of a feed batch.
#pragma once

#include <cstddef>

#include "absl/status/status.h"
#include "arcflow/columnar/schema.h"
#include "arcflow/feed/reader.h"
#include "tensorflow/core/framework/allocator.h"
#include "tensorflow/core/framework/tensor.h"

namespace arcflow::tf {

/// TensorFlow's type for a column; the numbers are the same.
tensorflow::DataType TypeOf(columnar::DType dtype);

/// A tensor [rows, row_shape…] of one column of `batch`, padding included.
/// Fixed-width columns that lie dense in shared memory are not copied: the tensor is those bytes
/// and keeps their segment leased as long as it lives, and no kernel writes into it. Other
/// fixed-width columns are copied once. Strings are copied, because TensorFlow copies tstring views
/// as views, which would outlive the lease. Errors: DataLoss for corrupt shared memory; what the
/// core says otherwise.
absl::Status ColumnTensor(const feed::Batch& batch, const columnar::Schema& schema,
                          std::size_t column, tensorflow::Allocator* allocator,
                          tensorflow::Tensor* out);

/// A tensor [items, row_shape…] of all items of a variable column that is no string. Copied once,
/// unless they happen to lie 64-byte aligned in one piece.
absl::Status ItemsTensor(const feed::Batch& batch, const columnar::Column& type,
                         const feed::RaggedRows& rows, tensorflow::Allocator* allocator,
                         tensorflow::Tensor* out);
/// int64 [rows + 1]: items before each row, and all.
tensorflow::Tensor SplitsTensor(const feed::RaggedRows& rows, tensorflow::Allocator* allocator);
/// The strings of arrays (feed::ArrayStrings): [rows, row_shape of lengths…], or [strings] when
/// rows differ.
absl::Status ArrayStringsTensor(const feed::Batch& batch, const columnar::Schema& schema,
                                std::size_t lengths, std::size_t bytes,
                                tensorflow::Allocator* allocator, tensorflow::Tensor* out);

/// float32 [rows]: 1 for each row, 0 for each row of padding.
tensorflow::Tensor WeightTensor(const feed::Batch& batch, tensorflow::Allocator* allocator);

}  // namespace arcflow::tf
