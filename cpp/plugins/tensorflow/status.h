// SPDX-License-Identifier: Apache-2.0
// Converts the core's Status to TensorFlow's: the only place that does.
#pragma once

#include <string_view>

#include "absl/status/status.h"
#include "arcflow/base/status.h"

namespace arcflow::tf {

constexpr bool SameNumber(Code ours, absl::StatusCode theirs) {
  return static_cast<int>(ours) == static_cast<int>(theirs);
}
static_assert(SameNumber(Code::kOk, absl::StatusCode::kOk));
static_assert(SameNumber(Code::kCancelled, absl::StatusCode::kCancelled));
static_assert(SameNumber(Code::kUnknown, absl::StatusCode::kUnknown));
static_assert(SameNumber(Code::kInvalidArgument, absl::StatusCode::kInvalidArgument));
static_assert(SameNumber(Code::kDeadlineExceeded, absl::StatusCode::kDeadlineExceeded));
static_assert(SameNumber(Code::kNotFound, absl::StatusCode::kNotFound));
static_assert(SameNumber(Code::kAlreadyExists, absl::StatusCode::kAlreadyExists));
static_assert(SameNumber(Code::kPermissionDenied, absl::StatusCode::kPermissionDenied));
static_assert(SameNumber(Code::kResourceExhausted, absl::StatusCode::kResourceExhausted));
static_assert(SameNumber(Code::kFailedPrecondition, absl::StatusCode::kFailedPrecondition));
static_assert(SameNumber(Code::kAborted, absl::StatusCode::kAborted));
static_assert(SameNumber(Code::kOutOfRange, absl::StatusCode::kOutOfRange));
static_assert(SameNumber(Code::kUnimplemented, absl::StatusCode::kUnimplemented));
static_assert(SameNumber(Code::kInternal, absl::StatusCode::kInternal));
static_assert(SameNumber(Code::kUnavailable, absl::StatusCode::kUnavailable));
static_assert(SameNumber(Code::kDataLoss, absl::StatusCode::kDataLoss));
static_assert(SameNumber(Code::kUnauthenticated, absl::StatusCode::kUnauthenticated));

/// The same code and message. tf.data takes OutOfRange for the end of the data, which in the core
/// is a value, so an OutOfRange error becomes Internal instead of ending an epoch early.
inline absl::Status ToTf(const Status& status) {
  if (status.ok()) return absl::OkStatus();
  const Code code = status.code() == Code::kOutOfRange ? Code::kInternal : status.code();
  return absl::Status(static_cast<absl::StatusCode>(code), std::string_view(status.message()));
}

}  // namespace arcflow::tf
