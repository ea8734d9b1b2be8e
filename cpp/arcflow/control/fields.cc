// SPDX-License-Identifier: Apache-2.0
// Bounded, typed access to the fields of a JSON object.
#include "arcflow/control/fields.h"

#include <cstdint>
#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/control/text.h"

namespace arcflow::control {
namespace {

/// The integer in `value` when it is one and fits.
bool AsInt64(const nlohmann::json& value, std::int64_t* out) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() &&
      value.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX))
    return false;
  *out = value.get<std::int64_t>();
  return true;
}

}  // namespace

Fields::Fields(const nlohmann::json& object, std::string what)
    : object_(object), what_(std::move(what)) {
  if (!object.is_object()) status_ = InvalidArgument(what_ + " is not a JSON object");
}

Fields& Fields::Fail(const char* key, const std::string& problem) {
  if (status_.ok()) status_ = InvalidArgument(what_ + "." + key + " " + problem);
  return *this;
}

Fields& Fields::Check(const char* key, const Status& status) {
  if (status_.ok() && !status.ok()) status_ = status.WithContext(what_ + "." + key);
  return *this;
}

const nlohmann::json* Fields::Find(const char* key, Need need) {
  if (!status_.ok()) return nullptr;
  const auto it = object_.find(key);
  if (it != object_.end() && !it->is_null()) return &*it;
  if (need == Need::kRequired) Fail(key, "is missing");
  return nullptr;
}

Fields& Fields::String(const char* key, std::string* out, std::size_t max_bytes, Need need) {
  const auto* value = Find(key, need);
  if (value == nullptr) return *this;
  if (!value->is_string()) return Fail(key, "is not a string");
  const auto& text = value->get_ref<const std::string&>();
  if (text.size() > max_bytes)
    return Fail(key, "is longer than " + std::to_string(max_bytes) + " bytes");
  if (text.find('\0') != std::string::npos) return Fail(key, "holds a zero byte");
  *out = text;
  return *this;
}

Fields& Fields::Text(const char* key, std::string* out, std::size_t max_bytes) {
  const auto* value = Find(key, Need::kOptional);
  if (value == nullptr) return *this;
  if (!value->is_string()) return Fail(key, "is not a string");
  *out = CleanText(value->get_ref<const std::string&>(), max_bytes);
  return *this;
}

Fields& Fields::Bool(const char* key, bool* out, Need need) {
  const auto* value = Find(key, need);
  if (value == nullptr) return *this;
  if (!value->is_boolean()) return Fail(key, "is not true or false");
  *out = value->get<bool>();
  return *this;
}

Fields& Fields::Number(const char* key, double* out, double min, double max, Need need) {
  const auto* value = Find(key, need);
  if (value == nullptr) return *this;
  if (!value->is_number()) return Fail(key, "is not a number");
  const double number = value->get<double>();
  if (!(number >= min && number <= max)) {
    return Fail(key, "is not between " + std::to_string(min) + " and " + std::to_string(max));
  }
  *out = number;
  return *this;
}

Fields& Fields::Int64(const char* key, std::int64_t* out, std::int64_t min, std::int64_t max,
                      Need need) {
  const auto* value = Find(key, need);
  if (value == nullptr) return *this;
  std::int64_t number = 0;
  if (!AsInt64(*value, &number)) return Fail(key, "is not an integer");
  if (number < min || number > max) {
    return Fail(key, "is not between " + std::to_string(min) + " and " + std::to_string(max));
  }
  *out = number;
  return *this;
}

Fields& Fields::Uint64(const char* key, std::uint64_t* out, std::uint64_t max, Need need) {
  const auto* value = Find(key, need);
  if (value == nullptr) return *this;
  const bool negative =
      value->is_number_integer() && !value->is_number_unsigned() && value->get<std::int64_t>() < 0;
  if (!value->is_number_integer() || negative) return Fail(key, "is not an integer from 0");
  const auto number = value->get<std::uint64_t>();
  if (number > max) return Fail(key, "is over " + std::to_string(max));
  *out = number;
  return *this;
}

Fields& Fields::Int(const char* key, int* out, int min, int max, Need need) {
  std::int64_t number = *out;
  Int64(key, &number, min, max, need);
  if (status_.ok()) *out = static_cast<int>(number);
  return *this;
}

Fields& Fields::Port(const char* key, std::uint16_t* out, Need need) {
  std::int64_t number = *out;
  Int64(key, &number, 0, 65535, need);
  if (status_.ok()) *out = static_cast<std::uint16_t>(number);
  return *this;
}

Fields& Fields::Strings(const char* key, std::vector<std::string>* out, std::size_t max_count,
                        std::size_t max_bytes, Need need) {
  const auto* value = Find(key, need);
  if (value == nullptr) return *this;
  if (!value->is_array()) return Fail(key, "is not a list");
  if (value->size() > max_count)
    return Fail(key, "has more than " + std::to_string(max_count) + " entries");
  std::vector<std::string> strings;
  for (const auto& entry : *value) {
    if (!entry.is_string()) return Fail(key, "has an entry that is not a string");
    const auto& text = entry.get_ref<const std::string&>();
    if (text.size() > max_bytes || text.find('\0') != std::string::npos)
      return Fail(key, "has an entry too long");
    strings.push_back(text);
  }
  *out = std::move(strings);
  return *this;
}

Fields& Fields::StringMap(const char* key, std::map<std::string, std::string>* out,
                          std::size_t max_count, std::size_t max_bytes, Need need) {
  const auto* value = Find(key, need);
  if (value == nullptr) return *this;
  if (!value->is_object()) return Fail(key, "is not an object");
  if (value->size() > max_count)
    return Fail(key, "has more than " + std::to_string(max_count) + " entries");
  std::map<std::string, std::string> map;
  for (const auto& [name, entry] : value->items()) {
    if (!entry.is_string())
      return Fail(key, "has an entry that is not a string: " + CleanText(name, 64));
    const auto& text = entry.get_ref<const std::string&>();
    if (name.size() > max_bytes || text.size() > max_bytes ||
        name.find('\0') != std::string::npos || text.find('\0') != std::string::npos) {
      return Fail(key, "has an entry too long: " + CleanText(name, 64));
    }
    map.emplace(name, text);
  }
  *out = std::move(map);
  return *this;
}

}  // namespace arcflow::control
