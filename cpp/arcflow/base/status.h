// SPDX-License-Identifier: Apache-2.0
// Status and Result<T>: how every fallible function of the core reports what went wrong.
#pragma once

#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace arcflow {

/// Numbers are those of google.rpc.Code and therefore of TF_Code; a border converts by a checked
/// cast.
enum class Code : int {
  kOk = 0,
  kCancelled = 1,
  kUnknown = 2,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kAlreadyExists = 6,
  kPermissionDenied = 7,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kAborted = 10,
  kOutOfRange = 11,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
  kUnauthenticated = 16,
};

/// The upper-case name that google.rpc uses, e.g. "INVALID_ARGUMENT"; Python's ArcflowError.code
/// holds the same text.
std::string_view CodeName(Code code);

/// The code of that name; kUnknown for any other text.
Code CodeFromName(std::string_view name);

/// Outcome of a fallible call. OK is a null pointer, so success allocates nothing. Copies share the
/// message. Threads: immutable after construction.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message);

  static Status Ok() { return {}; }
  /// `what: strerror(errno_value)`, with the code that fits errno best.
  static Status FromErrno(int errno_value, std::string_view what);

  bool ok() const { return rep_ == nullptr; }
  Code code() const { return rep_ ? rep_->code : Code::kOk; }
  std::string_view message() const {
    return rep_ ? std::string_view(rep_->message) : std::string_view();
  }
  /// "OK" or "CODE_NAME: message".
  std::string ToString() const;
  /// The same code with `context: ` put before the message; OK stays OK.
  Status WithContext(std::string_view context) const;

 private:
  struct Rep {
    Code code;
    std::string message;
  };
  std::shared_ptr<const Rep> rep_;
};

Status Cancelled(std::string message);
Status InvalidArgument(std::string message);
Status DeadlineExceeded(std::string message);
Status NotFound(std::string message);
Status ResourceExhausted(std::string message);
Status FailedPrecondition(std::string message);
Status OutOfRange(std::string message);
Status Unimplemented(std::string message);
Status Internal(std::string message);
Status Unavailable(std::string message);
Status DataLoss(std::string message);
Status Unauthenticated(std::string message);

/// A T or the Status that says why there is none. Never holds an OK status.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value)
      : v_(std::in_place_index<0>, std::move(value)) {
  }  // NOLINT(google-explicit-constructor): `return value;`
  Result(Status status)
      : v_(std::in_place_index<1>, std::move(status)) {  // NOLINT(google-explicit-constructor)
    if (std::get<1>(v_).ok()) std::get<1>(v_) = Internal("Result made from an OK status");
  }

  bool ok() const { return v_.index() == 0; }
  Status status() const { return ok() ? Status() : std::get<1>(v_); }
  /// Requires ok().
  T& value() & { return std::get<0>(v_); }
  const T& value() const& { return std::get<0>(v_); }
  T&& value() && { return std::get<0>(std::move(v_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  std::variant<T, Status> v_;
};

}  // namespace arcflow

#define ARC_CONCAT_INNER(a, b) a##b
#define ARC_CONCAT(a, b) ARC_CONCAT_INNER(a, b)
/// Returns the Status of `expr` from the enclosing function unless it is OK.
#define ARC_TRY(expr) \
  if (::arcflow::Status arc_status_ = (expr); !arc_status_.ok()) return arc_status_
/// `ARC_ASSIGN(auto x, MakeX());` declares or assigns x, or returns the Status.
// NOLINTBEGIN(bugprone-macro-parentheses): `lhs` may be a declaration
#define ARC_ASSIGN(lhs, expr)                                                                     \
  auto ARC_CONCAT(arc_result_, __LINE__) = (expr);                                                \
  if (!ARC_CONCAT(arc_result_, __LINE__).ok()) return ARC_CONCAT(arc_result_, __LINE__).status(); \
  lhs = std::move(ARC_CONCAT(arc_result_, __LINE__)).value()
// NOLINTEND(bugprone-macro-parentheses)
