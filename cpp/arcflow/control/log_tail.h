// SPDX-License-Identifier: Apache-2.0
// LogTail: splits what a node prints into lines, keeps the last of them, passes them on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace arcflow::control {

/// Lines of a byte stream. A carriage return starts the line anew, as a progress bar means it; a
/// line longer than kMaxLine goes on in the next one. Memory: at most `max_bytes` of kept lines and
/// one unfinished line. Threads: one. Never blocks: a copy that its reader does not take is dropped
/// and counted.
class LogTail {
 public:
  static constexpr std::size_t kMaxLine = 4000;

  struct Options {
    std::size_t max_lines = 50;
    std::size_t max_bytes = 64 * 1024;
    int copy_fd = -1;         // where lines are written as well, not owned; -1 = nowhere
    std::string copy_prefix;  // before each copied line
    std::function<void(std::string_view line)> on_line;    // may be empty
    std::function<void(std::string_view bytes)> on_bytes;  // all of them as they come; may be empty
  };
  explicit LogTail(Options options) : options_(std::move(options)) {}

  void Feed(std::string_view bytes);
  /// Reads what a non-blocking look at `fd` gives. False at its end (or an error), true when more
  /// may come.
  bool Drain(int fd);
  /// Makes an unfinished last line a line.
  void Finish();

  /// The last lines, oldest first; an unfinished one included.
  std::vector<std::string> Lines() const;
  /// The last of them that are at most `max_lines` and `max_bytes` together.
  std::vector<std::string> Lines(std::size_t max_lines, std::size_t max_bytes) const;
  std::uint64_t lines_seen() const { return lines_seen_; }
  std::uint64_t copy_dropped() const { return copy_dropped_; }

 private:
  void EndLine();
  void Copy(std::string_view line);

  Options options_;
  std::deque<std::string> lines_;
  std::size_t bytes_ = 0;
  std::string open_;
  bool carriage_return_ = false;  // the next character but a newline starts the line anew
  std::uint64_t lines_seen_ = 0;
  std::uint64_t copy_dropped_ = 0;
};

}  // namespace arcflow::control
