// SPDX-License-Identifier: Apache-2.0
// Arrow arrays built by hand for tests: every buffer, offset and bitmap is chosen by the test, no
// Arrow library needed.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "arcflow/columnar/arrow_abi.h"
#include "arcflow/columnar/arrow_view.h"

namespace arcflow::columnar::testing {

/// A type and its data, owning all buffers and children. Held by unique_ptr, because the structs
/// point into the object. Tests may change `type` and `array` after building to make them wrong.
class TestArray {
 public:
  TestArray(std::string format, std::string name, std::int64_t length)
      : format_(std::move(format)), name_(std::move(name)) {
    type = {format_.c_str(), name_.c_str(),        nullptr, 0, 0, nullptr,
            nullptr,         &Forget<ArrowSchema>, nullptr};
    array = {length, 0, 0, 0, 0, nullptr, nullptr, nullptr, &Forget<ArrowArray>, nullptr};
    AddBuffer<std::byte>({}, true);
  }
  TestArray(const TestArray&) = delete;
  TestArray& operator=(const TestArray&) = delete;

  template <typename T>
  void AddBuffer(const std::vector<T>& values, bool absent = false) {
    // One byte more than needed in front, so that buffers are misaligned as IPC bodies may be.
    auto copy = std::make_unique<std::byte[]>(values.size() * sizeof(T) + 1);
    if (!values.empty()) std::memcpy(copy.get() + 1, values.data(), values.size() * sizeof(T));
    buffers_.push_back(absent ? nullptr : copy.get() + 1);
    storage_.push_back(std::move(copy));
    array.buffers = buffers_.data();
    array.n_buffers = static_cast<std::int64_t>(buffers_.size());
  }
  void AddChild(std::unique_ptr<TestArray> child) {
    children_.push_back(std::move(child));
    types_.clear();
    arrays_.clear();
    for (auto& c : children_) {
      types_.push_back(&c->type);
      arrays_.push_back(&c->array);
    }
    type.children = types_.data();
    array.children = arrays_.data();
    type.n_children = array.n_children = static_cast<std::int64_t>(children_.size());
  }
  /// Validity of the whole array from its physical start; null_count becomes -1 (not counted).
  void SetValidity(const std::vector<bool>& valid) {
    auto bits = std::make_unique<std::byte[]>(valid.size() / 8 + 1);
    for (std::size_t i = 0; i < valid.size(); ++i) {
      if (valid[i]) bits[i / 8] |= std::byte{static_cast<unsigned char>(1U << (i % 8))};
    }
    buffers_[0] = bits.get();
    storage_.push_back(std::move(bits));
    array.null_count = -1;
  }
  void Slice(std::int64_t offset, std::int64_t length) {
    array.offset = offset;
    array.length = length;
  }
  void SetDictionary(std::unique_ptr<TestArray> values) {
    dictionary_ = std::move(values);
    type.dictionary = &dictionary_->type;
    array.dictionary = &dictionary_->array;
  }
  TestArray& child(std::size_t i) { return *children_[i]; }

  ArrowSchema type;
  ArrowArray array;

 private:
  template <typename T>
  static void Forget(T* x) {
    x->release = nullptr;
  }
  std::string format_;
  std::string name_;
  std::vector<const void*> buffers_;
  std::vector<std::unique_ptr<std::byte[]>> storage_;
  std::vector<std::unique_ptr<TestArray>> children_;
  std::vector<ArrowSchema*> types_;
  std::vector<ArrowArray*> arrays_;
  std::unique_ptr<TestArray> dictionary_;
};

using TestArrayPtr = std::unique_ptr<TestArray>;

template <typename T>
TestArrayPtr Primitive(std::string name, std::string format, const std::vector<T>& values) {
  auto out = std::make_unique<TestArray>(std::move(format), std::move(name),
                                         static_cast<std::int64_t>(values.size()));
  out->AddBuffer(values);
  return out;
}

inline TestArrayPtr Bools(std::string name, const std::vector<bool>& values) {
  auto out =
      std::make_unique<TestArray>("b", std::move(name), static_cast<std::int64_t>(values.size()));
  std::vector<std::uint8_t> bits(values.size() / 8 + 1);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (values[i]) bits[i / 8] = static_cast<std::uint8_t>(bits[i / 8] | (1U << (i % 8)));
  }
  out->AddBuffer(bits);
  return out;
}

/// `format` "u", "z" (32-bit offsets) or "U", "Z" (64-bit). `junk` bytes of something else precede
/// the first value.
inline TestArrayPtr Strings(std::string name, const std::string& format,
                            const std::vector<std::string>& values, std::size_t junk = 0) {
  auto out = std::make_unique<TestArray>(format, std::move(name),
                                         static_cast<std::int64_t>(values.size()));
  std::vector<std::int64_t> offsets{static_cast<std::int64_t>(junk)};
  std::string data(junk, '#');
  for (const std::string& v : values) {
    data += v;
    offsets.push_back(static_cast<std::int64_t>(data.size()));
  }
  if (format == "U" || format == "Z") {
    out->AddBuffer(offsets);
  } else {
    out->AddBuffer(std::vector<std::int32_t>(offsets.begin(), offsets.end()));
  }
  out->AddBuffer(std::vector<char>(data.begin(), data.end()));
  return out;
}

/// fixed_size_binary; every value has `width` bytes.
inline TestArrayPtr FixedBinary(std::string name, std::size_t width,
                                const std::vector<std::string>& values) {
  auto out = std::make_unique<TestArray>("w:" + std::to_string(width), std::move(name),
                                         static_cast<std::int64_t>(values.size()));
  std::vector<char> data;
  for (const std::string& v : values) data.insert(data.end(), v.begin(), v.end());
  out->AddBuffer(data);
  return out;
}

/// list (T = int32) or large_list (T = int64) with explicit offsets.
template <typename T>
TestArrayPtr List(std::string name, const std::vector<T>& offsets, TestArrayPtr values) {
  auto out = std::make_unique<TestArray>(sizeof(T) == 4 ? "+l" : "+L", std::move(name),
                                         static_cast<std::int64_t>(offsets.size()) - 1);
  out->AddBuffer(offsets);
  out->AddChild(std::move(values));
  return out;
}

inline TestArrayPtr FixedList(std::string name, std::int64_t k, std::int64_t rows,
                              TestArrayPtr values) {
  auto out = std::make_unique<TestArray>("+w:" + std::to_string(k), std::move(name), rows);
  out->AddChild(std::move(values));
  return out;
}

/// A record batch of `rows` rows.
template <typename... Columns>
TestArrayPtr RecordBatch(std::int64_t rows, Columns... columns) {
  auto out = std::make_unique<TestArray>("+s", "", rows);
  (out->AddChild(std::move(columns)), ...);
  return out;
}

/// The batch is refused as InvalidArgument with `part` in the message.
inline void ExpectRefused(const Schema& schema, TestArray& batch, const std::string& part) {
  const Result<BatchView> view = ViewBatch(schema, batch.type, batch.array);
  ASSERT_FALSE(view.ok()) << "expected: " << part;
  EXPECT_EQ(view.status().code(), Code::kInvalidArgument);
  EXPECT_THAT(std::string(view.status().message()), ::testing::HasSubstr(part));
}

}  // namespace arcflow::columnar::testing
