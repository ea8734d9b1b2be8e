// SPDX-License-Identifier: Apache-2.0
// NodeInspector: asks a living node for the stacks of its threads, from the agent's loop.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "arcflow/base/fd.h"
#include "arcflow/control/process_state.h"
#include "arcflow/net/loop.h"

namespace arcflow::control {

/// What a node is doing.
struct Inspection {
  std::string python;   // faulthandler's text; "" when the node runs no Python, or cannot answer
  std::string native;   // equal stacks told once
  std::string threads;  // states as /proc tells them
};

/// What Python stacks say, as far as a rule needs it. Threads: pure functions.
/// Some thread is inside a TensorFlow operation, which may wait for other nodes.
bool InsideTensorFlow(const std::string& python);
/// A function is being traced, or a model saved or restored.
bool Compiling(const std::string& python);
bool Saving(const std::string& python);
/// "train.py, line 7 in step": the innermost frame of the main thread; "" when unknown.
std::string InnermostFrame(const std::string& python);

/// One inspection at a time. Threads: the loop's. Never blocks: what a thread does not answer
/// within a fraction of a second is left out, and all of it takes seconds at most.
class NodeInspector {
 public:
  using Done = std::function<void(Inspection inspection)>;
  NodeInspector(net::Loop& loop, pid_t pid) : loop_(loop), pid_(pid) {}
  ~NodeInspector();

  /// The file that the node's handlers write to (stack_dumper.h).
  void SetStacks(Fd stacks) { stacks_ = std::move(stacks); }
  /// Its interpreter answers PythonStackSignal().
  void SetPython() { python_ready_ = true; }

  /// Python stacks and thread states; `native` too when asked. False while another inspection runs.
  bool Inspect(bool native, Done done);

 private:
  void AskPython();
  void AwaitPython();
  void AskNext();
  void AwaitNative();
  void Finish();
  std::size_t Size() const;
  std::string TakeText();
  void Later(std::chrono::milliseconds delay, void (NodeInspector::*step)());

  net::Loop& loop_;
  pid_t pid_;
  Fd stacks_;
  bool python_ready_ = false;
  bool native_ = false;
  Done done_;
  Inspection found_;
  std::vector<ThreadState> threads_;
  std::size_t next_ = 0;
  std::size_t last_size_ = 0;
  int quiet_ = 0;
  int waited_ = 0;
  std::vector<std::pair<std::string, int>> stacks_seen_;  // body, threads that have it
  net::Loop::TimerId timer_ = 0;
};

}  // namespace arcflow::control
