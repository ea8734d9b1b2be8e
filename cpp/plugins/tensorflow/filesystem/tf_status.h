// SPDX-License-Identifier: Apache-2.0
// Converts the core's Status to the C interface's TF_Status.
#pragma once

#include <string>

#include "arcflow/base/status.h"
#include "tensorflow/c/tf_status.h"

namespace arcflow::tf {

constexpr bool SameNumber(Code ours, TF_Code theirs) {
  return static_cast<int>(ours) == static_cast<int>(theirs);
}
static_assert(SameNumber(Code::kOk, TF_OK));
static_assert(SameNumber(Code::kCancelled, TF_CANCELLED));
static_assert(SameNumber(Code::kUnknown, TF_UNKNOWN));
static_assert(SameNumber(Code::kInvalidArgument, TF_INVALID_ARGUMENT));
static_assert(SameNumber(Code::kDeadlineExceeded, TF_DEADLINE_EXCEEDED));
static_assert(SameNumber(Code::kNotFound, TF_NOT_FOUND));
static_assert(SameNumber(Code::kAlreadyExists, TF_ALREADY_EXISTS));
static_assert(SameNumber(Code::kPermissionDenied, TF_PERMISSION_DENIED));
static_assert(SameNumber(Code::kResourceExhausted, TF_RESOURCE_EXHAUSTED));
static_assert(SameNumber(Code::kFailedPrecondition, TF_FAILED_PRECONDITION));
static_assert(SameNumber(Code::kAborted, TF_ABORTED));
static_assert(SameNumber(Code::kOutOfRange, TF_OUT_OF_RANGE));
static_assert(SameNumber(Code::kUnimplemented, TF_UNIMPLEMENTED));
static_assert(SameNumber(Code::kInternal, TF_INTERNAL));
static_assert(SameNumber(Code::kUnavailable, TF_UNAVAILABLE));
static_assert(SameNumber(Code::kDataLoss, TF_DATA_LOSS));
static_assert(SameNumber(Code::kUnauthenticated, TF_UNAUTHENTICATED));

/// The same code and message. Readers take OutOfRange for the end of a file, so as an error it
/// becomes Internal.
inline void ToTf(const Status& status, TF_Status* out) {
  const Code code = status.code() == Code::kOutOfRange ? Code::kInternal : status.code();
  TF_SetStatus(out, static_cast<TF_Code>(code), std::string(status.message()).c_str());
}

}  // namespace arcflow::tf
