// SPDX-License-Identifier: Apache-2.0
// Signals to a node's threads, and the reading of what they write.
#include "arcflow/control/node_inspector.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include "arcflow/control/stack_dumper.h"

namespace arcflow::control {
namespace {

using std::chrono::milliseconds;

constexpr std::size_t kMaxThreads = 96;
constexpr std::size_t kMaxStackTextBytes = std::size_t{1} << 20;
constexpr milliseconds kPythonPause{20};
constexpr int kPythonQuiet = 4;  // looks without growth that end it
constexpr int kPythonLooks = 100;
constexpr milliseconds kNativePause{4};
constexpr int kNativeLooks = 50;

/// The blocks of faulthandler: "Thread 0x… (most recent call first):" and its frames.
std::vector<std::string> Blocks(const std::string& python) {
  std::vector<std::string> blocks;
  for (std::size_t at = 0; at < python.size();) {
    auto end = python.find('\n', at);
    if (end == std::string::npos) end = python.size();
    const std::string line = python.substr(at, end - at);
    at = end + 1;
    if (line.rfind("Thread ", 0) == 0 || line.rfind("Current thread ", 0) == 0) {
      blocks.emplace_back();
    } else if (!blocks.empty() && !line.empty()) {
      blocks.back() += line + "\n";
    }
  }
  return blocks;
}

bool AnyHas(const std::string& text, std::initializer_list<const char*> words) {
  return std::any_of(words.begin(), words.end(),
                     [&](const char* word) { return text.find(word) != std::string::npos; });
}

}  // namespace

bool InsideTensorFlow(const std::string& python) {
  for (const std::string& block : Blocks(python)) {
    const std::string first = block.substr(0, block.find('\n'));
    if (AnyHas(first, {"tensorflow/python/eager/", "tensorflow/python/framework/",
                       "tensorflow/python/ops/"})) {
      return true;
    }
  }
  return false;
}

bool Compiling(const std::string& python) {
  return AnyHas(python, {"in func_graph_from_py_func", "in trace_function", "in _maybe_define",
                         "in _create_concrete_function", "in autograph_handler"});
}

bool Saving(const std::string& python) {
  return AnyHas(python, {"tensorflow/python/checkpoint/", "tensorflow/python/saved_model/",
                         "keras/src/saving/", "keras/src/export/", "tensorflow/python/lib/io/"});
}

std::string InnermostFrame(const std::string& python) {
  const auto blocks = Blocks(python);
  if (blocks.empty()) return "";
  const std::string& main = blocks.back();  // faulthandler tells the oldest thread last
  std::string line = main.substr(0, main.find('\n'));
  const auto quote = line.find('"');
  const auto end = line.find('"', quote + 1);
  if (quote == std::string::npos || end == std::string::npos) return "";
  const std::string path = line.substr(quote + 1, end - quote - 1);
  const auto slash = path.rfind('/');
  return (slash == std::string::npos ? path : path.substr(slash + 1)) + line.substr(end + 1);
}

NodeInspector::~NodeInspector() {
  if (timer_ != 0) loop_.CancelTimer(timer_);
}

void NodeInspector::Later(milliseconds delay, void (NodeInspector::*step)()) {
  timer_ = loop_.After(delay, [this, step] {
    timer_ = 0;
    (this->*step)();
  });
}

bool NodeInspector::Inspect(bool native, Done done) {
  if (done_) return false;
  native_ = native;
  done_ = std::move(done);
  found_ = Inspection{};
  found_.threads = DescribeThreads(pid_, kMaxThreads);
  threads_ = ThreadsOf(pid_, kMaxThreads);
  next_ = 0;
  stacks_seen_.clear();
  // A stopped process runs no handler; its state says all.
  if (!stacks_.valid() || ProcessState::Of(pid_).stopped()) {
    Later(milliseconds(0), &NodeInspector::Finish);
    return true;
  }
  AskPython();
  return true;
}

std::size_t NodeInspector::Size() const {
  struct stat st {};
  return ::fstat(stacks_.get(), &st) == 0 ? static_cast<std::size_t>(st.st_size) : 0;
}

std::string NodeInspector::TakeText() {
  std::string text(std::min(Size(), kMaxStackTextBytes), '\0');
  const ssize_t n = ::pread(stacks_.get(), text.data(), text.size(), 0);
  text.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
  (void)!::ftruncate(stacks_.get(), 0);
  return text;
}

void NodeInspector::AskPython() {
  (void)!::ftruncate(stacks_.get(), 0);
  last_size_ = 0;
  quiet_ = waited_ = 0;
  // The first thread is Python's main one; where it blocks the signal nobody else would take it.
  if (!python_ready_ || ::syscall(SYS_tgkill, pid_, pid_, PythonStackSignal()) != 0) {
    return AskNext();
  }
  Later(kPythonPause, &NodeInspector::AwaitPython);
}

void NodeInspector::AwaitPython() {
  const std::size_t size = Size();
  quiet_ = size > 0 && size == last_size_ ? quiet_ + 1 : 0;
  last_size_ = size;
  if (quiet_ < kPythonQuiet && ++waited_ < kPythonLooks) {
    return Later(kPythonPause, &NodeInspector::AwaitPython);
  }
  found_.python = TakeText();
  AskNext();
}

void NodeInspector::AskNext() {
  const std::uint64_t bit = std::uint64_t{1} << (NativeStackSignal() - 1);
  while (native_ && next_ < threads_.size()) {
    const ThreadState& thread = threads_[next_];
    if ((thread.blocked & bit) == 0 &&
        ::syscall(SYS_tgkill, pid_, thread.tid, NativeStackSignal()) == 0) {
      waited_ = 0;
      return Later(milliseconds(1), &NodeInspector::AwaitNative);
    }
    ++next_;
  }
  Finish();
}

void NodeInspector::AwaitNative() {
  std::string text(std::min(Size(), kMaxStackTextBytes), '\0');
  const ssize_t n = ::pread(stacks_.get(), text.data(), text.size(), 0);
  text.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
  const auto end = text.find(kStackEnd + std::to_string(threads_[next_].tid));
  if (end == std::string::npos && ++waited_ < kNativeLooks) {
    return Later(kNativePause, &NodeInspector::AwaitNative);
  }
  if (end != std::string::npos) {
    const auto body_at = text.find('\n') + 1;
    const std::string head = text.substr(0, body_at);
    const std::string body = text.substr(body_at, end - body_at);
    const auto same = std::find_if(stacks_seen_.begin(), stacks_seen_.end(), [&](const auto& seen) {
      return seen.first.find(body) != std::string::npos;
    });
    if (same != stacks_seen_.end()) {
      ++same->second;
    } else {
      stacks_seen_.emplace_back(head + body, 0);
    }
  }
  (void)!::ftruncate(stacks_.get(), 0);
  ++next_;
  AskNext();
}

void NodeInspector::Finish() {
  for (const auto& [stack, more] : stacks_seen_) {
    found_.native += stack;
    if (more > 0) found_.native += "(and " + std::to_string(more) + " threads more there)\n";
  }
  const Done done = std::exchange(done_, nullptr);
  done(std::move(found_));
}

}  // namespace arcflow::control
