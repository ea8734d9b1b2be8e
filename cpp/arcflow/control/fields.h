// SPDX-License-Identifier: Apache-2.0
// Fields: reads the fields of a JSON object that somebody else wrote, with bounds, and remembers
// the first thing wrong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "arcflow/base/status.h"

namespace arcflow::control {

/// Whether a field may be missing (its output then keeps its value; null counts as missing).
enum class Need { kRequired, kOptional };

/// Sticky reader of one object: call the readers one after another, then ask status().
/// Outputs are changed only by fields that are there and right. InvalidArgument names `what` and
/// the field. Threads: one. Lifetime: `object` must outlive it.
class Fields {
 public:
  Fields(const nlohmann::json& object, std::string what);

  Fields& String(const char* key, std::string* out, std::size_t max_bytes, Need need);
  /// As String, but the text is cleaned and cut to `max_bytes`.
  Fields& Text(const char* key, std::string* out, std::size_t max_bytes);
  Fields& Bool(const char* key, bool* out, Need need);
  Fields& Number(const char* key, double* out, double min, double max, Need need);
  Fields& Int64(const char* key, std::int64_t* out, std::int64_t min, std::int64_t max, Need need);
  Fields& Uint64(const char* key, std::uint64_t* out, std::uint64_t max, Need need);
  Fields& Int(const char* key, int* out, int min, int max, Need need);
  Fields& Port(const char* key, std::uint16_t* out, Need need);
  Fields& Strings(const char* key, std::vector<std::string>* out, std::size_t max_count,
                  std::size_t max_bytes, Need need);
  Fields& StringMap(const char* key, std::map<std::string, std::string>* out, std::size_t max_count,
                    std::size_t max_bytes, Need need);
  /// The field as it is; null when it is missing.
  const nlohmann::json* Find(const char* key, Need need);
  /// Records an error about `key` unless there is one already.
  Fields& Fail(const char* key, const std::string& problem);
  /// Records `status` with the field's name before it unless it is OK.
  Fields& Check(const char* key, const Status& status);

  bool ok() const { return status_.ok(); }
  const Status& status() const { return status_; }

 private:
  const nlohmann::json& object_;
  std::string what_;
  Status status_;
};

}  // namespace arcflow::control
