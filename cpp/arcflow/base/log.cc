// SPDX-License-Identifier: Apache-2.0
// Log: the sink behind a mutex, the level an atomic.
#include "arcflow/base/log.h"

#include <atomic>
#include <cstdio>
#include <mutex>
#include <string>
#include <utility>

namespace arcflow {
namespace {

struct State {
  std::mutex mutex;
  LogSink sink;
};
// Leaked on purpose: threads may log while static objects are destroyed.
State& GetState() {
  static State* state = new State;
  return *state;
}
std::atomic<int> g_level{static_cast<int>(LogLevel::kWarning)};

void WriteToStderr(LogLevel level, std::string_view line) {
  std::string text = "arcflow ";
  text.append(LogLevelName(level)).append(": ").append(line).append("\n");
  std::fwrite(text.data(), 1, text.size(), stderr);  // one write a line, so that lines never mix
}

}  // namespace

std::string_view LogLevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
    case LogLevel::kOff:
      break;
  }
  return "off";
}

void SetLogSink(LogSink sink) {
  State& state = GetState();
  std::lock_guard lock(state.mutex);
  std::swap(state.sink, sink);
}

void SetLogLevel(LogLevel level) {
  g_level.store(static_cast<int>(level), std::memory_order_relaxed);
}

LogLevel GetLogLevel() { return static_cast<LogLevel>(g_level.load(std::memory_order_relaxed)); }

void Log(LogLevel level, std::string_view line) noexcept {
  if (level >= LogLevel::kOff || level < GetLogLevel()) return;
  try {
    State& state = GetState();
    std::lock_guard lock(state.mutex);
    if (state.sink) {
      state.sink(level, line);
    } else {
      WriteToStderr(level, line);
    }
  } catch (...) {  // NOLINT(bugprone-empty-catch): a log line must not end the program
  }
}

}  // namespace arcflow
