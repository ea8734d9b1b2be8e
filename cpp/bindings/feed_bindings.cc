// SPDX-License-Identifier: Apache-2.0
// FeedReader: a node's rows as NumPy batches, without TensorFlow; without a copy where the rows lie
// dense.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <new>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "arcflow/feed/reader.h"
#include "core_bindings.h"

namespace arcflow::bindings {
namespace {

using columnar::Column;
using columnar::DType;
using feed::Batch;
using feed::Reader;

constexpr std::size_t kAlignment = 64;

Result<feed::Remainder> RemainderFromName(const std::string& name) {
  if (name == "pad") return feed::Remainder::kPad;
  if (name == "drop") return feed::Remainder::kDrop;
  if (name == "refuse") return feed::Remainder::kRefuse;
  if (name == "partial") return feed::Remainder::kPartial;
  return InvalidArgument("remainder is '" + name + "': choose pad, drop, refuse or partial");
}

nb::dlpack::dtype NumpyType(DType dtype) {
  using nb::dlpack::dtype_code;
  const auto make = [&](dtype_code code) {
    return nb::dlpack::dtype{static_cast<std::uint8_t>(code),
                             static_cast<std::uint8_t>(8 * columnar::SizeOf(dtype)), 1};
  };
  switch (dtype) {
    case DType::kFloat32:
    case DType::kFloat64:
      return make(dtype_code::Float);
    case DType::kUInt8:
      return make(dtype_code::UInt);
    case DType::kBool:
      return make(dtype_code::Bool);
    default:
      return make(dtype_code::Int);
  }
}

/// Memory that a NumPy array owns.
struct Buffer {
  explicit Buffer(std::size_t size)
      : bytes(static_cast<std::byte*>(
            ::operator new(std::max<std::size_t>(size, 1), std::align_val_t(kAlignment)))) {}
  ~Buffer() { ::operator delete(bytes, std::align_val_t(kAlignment)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  std::byte* bytes;
};

template <typename T>
nb::capsule Owner(std::unique_ptr<T> value) {
  nb::capsule capsule(value.get(), [](void* p) noexcept { delete static_cast<T*>(p); });
  value.release();
  return capsule;
}

std::vector<std::size_t> ShapeOf(std::size_t rows, const Column& column) {
  std::vector<std::size_t> shape{rows};
  for (const std::int64_t n : column.row_shape) shape.push_back(static_cast<std::size_t>(n));
  return shape;
}

nb::object StringsOf(const Batch& batch, std::size_t index) {
  std::vector<std::string_view> values;
  OrThrow(WithoutGil([&] { return feed::StringColumn(batch, index, &values); }));
  nb::list out;
  for (const std::string_view value : values) out.append(ToBytes(value));
  return out;
}

/// An array over bytes of the batch's segment, read-only, which holds the lease.
nb::object LeasedArray(const Batch& batch, std::span<const std::byte> bytes,
                       const std::vector<std::size_t>& shape, DType dtype) {
  auto lease = Owner(
      std::make_unique<std::shared_ptr<const feed::SegmentView>>(batch.pieces.front().segment));
  return nb::cast(nb::ndarray<nb::numpy, nb::ro>(bytes.data(), shape.size(), shape.data(), lease,
                                                 nullptr, NumpyType(dtype)));
}

/// (items, splits): items [n, …], and int64 [rows + 1] of how many come before each row.
nb::object RaggedOf(const Batch& batch, const columnar::Schema& schema, std::size_t index) {
  const Column& column = schema.columns[index];
  feed::RaggedRows rows;
  OrThrow(WithoutGil([&] { return feed::RaggedColumn(batch, schema, index, &rows); }));
  const auto shape = ShapeOf(static_cast<std::size_t>(rows.splits.back()), column);
  auto splits = std::make_unique<std::vector<std::int64_t>>(std::move(rows.splits));
  std::int64_t* at = splits->data();
  const std::size_t n = splits->size();
  auto splits_array = nb::cast(nb::ndarray<nb::numpy>(at, 1, &n, Owner(std::move(splits)), nullptr,
                                                      NumpyType(DType::kInt64)));
  if (const auto dense = feed::DenseItems(batch, rows); !dense.empty()) {
    return nb::make_tuple(LeasedArray(batch, dense, shape, column.dtype), splits_array);
  }
  auto buffer = std::make_unique<Buffer>(rows.bytes);
  std::byte* bytes = buffer->bytes;
  {
    const nb::gil_scoped_release nogil;
    feed::CopyItems(rows, bytes);
  }
  auto owner = Owner(std::move(buffer));
  return nb::make_tuple(nb::cast(nb::ndarray<nb::numpy>(bytes, shape.size(), shape.data(), owner,
                                                        nullptr, NumpyType(column.dtype))),
                        splits_array);
}

/// An array over the shared segment, read-only, which holds the lease; or over fresh memory when
/// rows are not dense.
nb::object ArrayOf(const Batch& batch, const columnar::Schema& schema, std::size_t index) {
  const Column& column = schema.columns[index];
  const std::vector<std::size_t> shape = ShapeOf(batch.rows(), column);
  const auto dense = feed::DenseView(batch, index);
  if (!dense.empty()) return LeasedArray(batch, dense, shape, column.dtype);
  const std::size_t size = batch.rows() * column.row_bytes();
  auto buffer = std::make_unique<Buffer>(size);
  std::byte* bytes = buffer->bytes;
  OrThrow(WithoutGil([&] { return feed::CopyColumn(batch, schema, index, {bytes, size}); }));
  auto owner = Owner(std::move(buffer));
  return nb::cast(nb::ndarray<nb::numpy>(bytes, shape.size(), shape.data(), owner, nullptr,
                                         NumpyType(column.dtype)));
}

/// A reader that an interrupted call may outlive.
struct FeedReader {
  std::unique_ptr<Reader> reader;
  std::mutex mutex;  // Next and Seek; Cancel goes without
};

FeedReader* Open(int broker_fd, const std::string& feed, std::int64_t batch_size,
                 const std::string& remainder, std::optional<std::uint64_t> shuffle_seed) {
  feed::ReaderOptions options;
  options.feed = feed;
  if (batch_size <= 0) {
    Raise(InvalidArgument("batch_size is " + std::to_string(batch_size) + ": it must be positive"));
  }
  options.batch_size = static_cast<std::size_t>(batch_size);
  options.remainder = ValueOrThrow(RemainderFromName(remainder));
  options.counters = NodeCounters();
  options.shuffle_seed = shuffle_seed;
  auto reader = ValueOrThrow(InThread([broker_fd, options] {
    return Reader::Open(broker_fd, options, Deadline::After(kAgentTimeout));
  }));
  auto out = std::make_unique<FeedReader>();
  out->reader = std::move(reader);
  return out.release();
}

nb::object Next(FeedReader& self, double timeout_s) {
  auto next = ValueOrThrow(InSlices(
      timeout_s,
      [&](Deadline slice) {
        const std::lock_guard lock(self.mutex);
        return self.reader->Next(slice);
      },
      [](const auto& each) { return each.status().code() == Code::kDeadlineExceeded; }));
  if (!next) return nb::none();
  const columnar::Schema& schema = self.reader->schema();
  nb::dict columns;
  for (std::size_t i = 0; i < schema.columns.size(); ++i) {
    const Column& column = schema.columns[i];
    columns[column.name.c_str()] = column.dtype == DType::kString ? StringsOf(*next, i)
                                   : column.variable()            ? RaggedOf(*next, schema, i)
                                                                  : ArrayOf(*next, schema, i);
  }
  return nb::make_tuple(columns, next->padding);
}

}  // namespace

void BindFeed(nb::module_& module) {
  nb::class_<FeedReader>(module, "FeedReader", "One pass over a feed as NumPy batches.")
      .def(nb::new_(&Open), nb::arg("broker_fd"), nb::arg("feed"), nb::arg("batch_size"),
           nb::arg("remainder") = "pad", nb::arg("shuffle_seed") = nb::none())
      .def("next", &Next, nb::arg("timeout_s"))
      .def_prop_ro("position", [](FeedReader& self) { return self.reader->position(); })
      .def(
          "seek",
          [](FeedReader& self, std::uint64_t step, std::optional<std::uint64_t> epoch) {
            OrThrow(WithoutGil([&] {
              const std::lock_guard lock(self.mutex);
              return epoch ? self.reader->Seek(step, *epoch) : self.reader->Seek(step);
            }));
          },
          nb::arg("step"), nb::arg("epoch") = nb::none())
      .def_prop_ro("schema_json",
                   [](FeedReader& self) { return self.reader->schema().ToJson().dump(); })
      .def("cancel", [](FeedReader& self) { self.reader->Cancel(); });
}

}  // namespace arcflow::bindings
