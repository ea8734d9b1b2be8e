// SPDX-License-Identifier: Apache-2.0
// Names of tasks in names of devices.
#pragma once

#include <string>

#include "tensorflow/core/util/device_name_utils.h"

namespace arcflow::tf {

/// "/job:worker/replica:0/task:0" of that name or of one of its devices; empty for others.
inline std::string TaskOf(const std::string& name) {
  tensorflow::DeviceNameUtils::ParsedName parsed;
  std::string task;
  if (tensorflow::DeviceNameUtils::ParseFullName(name, &parsed)) {
    tensorflow::DeviceNameUtils::GetTaskName(parsed, &task);
  }
  return task;
}

}  // namespace arcflow::tf
