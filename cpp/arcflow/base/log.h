// SPDX-License-Identifier: Apache-2.0
// Log: one levelled sink for what the core has to say; stderr unless somebody sets another.
#pragma once

#include <functional>
#include <string_view>

namespace arcflow {

enum class LogLevel : int { kDebug = 0, kInfo = 1, kWarning = 2, kError = 3, kOff = 4 };

/// "debug", "info", "warning", "error", "off".
std::string_view LogLevelName(LogLevel level);

/// Receives one line without its newline. Called from any thread, one call at a time; must not log
/// itself.
using LogSink = std::function<void(LogLevel level, std::string_view line)>;

/// Sets the sink; an empty function brings back stderr. After it returns the former sink is not
/// called any more.
void SetLogSink(LogSink sink);
/// Lines below `level` are dropped; kOff silences everything. The default is kWarning.
void SetLogLevel(LogLevel level);
LogLevel GetLogLevel();

/// Hands a line to the sink if its level passes. Threads: any. Never throws; a sink that throws
/// loses the line.
void Log(LogLevel level, std::string_view line) noexcept;

}  // namespace arcflow
