// SPDX-License-Identifier: Apache-2.0
// CrashText: finds in a node's last lines why it crashed, and whether that was another's doing.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace arcflow::control {

/// What the last lines of a process that crashed tell.
struct CrashText {
  std::string message;         // "" when no line explains the end
  std::string type;            // "std::bad_alloc", "Check failed", "Fatal Python error"; "" unknown
  std::string traceback;       // of faulthandler; "" without one
  bool out_of_memory = false;  // the message says that memory could not be had
  bool peer_loss = false;      // the lines say that another node was lost first
};

/// Reads lines, oldest first, for the words of: the C++ runtime ("terminate called after throwing
/// …"), glibc ("double free or corruption", "stack smashing detected"), assert, Abseil and
/// TensorFlow (lines of severity F, "Check failed"), Python's faulthandler ("Fatal Python error")
/// and TensorFlow's coordination service, whose clients end themselves when a peer is gone.
/// Cost: one pass over the lines. Threads: pure function.
CrashText ReadCrash(const std::vector<std::string>& lines);

/// Whether a text of a dying program blames the loss of another node.
bool BlamesPeer(std::string_view text);
/// Whether it says that memory could not be had (MemoryError, std::bad_alloc, TensorFlow's OOM).
bool BlamesMemory(std::string_view type, std::string_view message);

}  // namespace arcflow::control
