// SPDX-License-Identifier: Apache-2.0
// Splitting a node's output into lines without ever waiting for the one who reads the copy.
#include "arcflow/control/log_tail.h"

#include <limits.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace arcflow::control {

void LogTail::Feed(std::string_view bytes) {
  if (options_.on_bytes) options_.on_bytes(bytes);
  for (const char c : bytes) {
    if (c == '\n') {
      carriage_return_ = false;
      EndLine();
      continue;
    }
    if (c == '\r') {
      carriage_return_ = true;
      continue;
    }
    if (carriage_return_) open_.clear();
    carriage_return_ = false;
    open_ += c;
    if (open_.size() >= kMaxLine) EndLine();
  }
}

bool LogTail::Drain(int fd) {
  char buffer[16 * 1024];
  for (;;) {
    pollfd entry{fd, POLLIN, 0};
    const int ready = ::poll(&entry, 1, 0);
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return ready == 0;
    const ssize_t n = ::read(fd, buffer, sizeof buffer);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n <= 0) return false;
    Feed(std::string_view(buffer, static_cast<std::size_t>(n)));
  }
}

void LogTail::Finish() {
  if (!open_.empty()) EndLine();
}

std::vector<std::string> LogTail::Lines() const {
  std::vector<std::string> lines(lines_.begin(), lines_.end());
  if (!open_.empty()) lines.push_back(open_);
  if (lines.size() > options_.max_lines) {
    lines.erase(lines.begin(), lines.end() - static_cast<std::ptrdiff_t>(options_.max_lines));
  }
  return lines;
}

std::vector<std::string> LogTail::Lines(std::size_t max_lines, std::size_t max_bytes) const {
  std::vector<std::string> lines = Lines();
  std::size_t bytes = 0;
  std::size_t kept = 0;
  while (kept < lines.size() && kept < max_lines) {
    bytes += lines[lines.size() - 1 - kept].size() + 1;
    if (bytes > max_bytes) break;
    ++kept;
  }
  lines.erase(lines.begin(), lines.end() - static_cast<std::ptrdiff_t>(kept));
  return lines;
}

void LogTail::EndLine() {
  ++lines_seen_;
  Copy(open_);
  if (options_.on_line) options_.on_line(open_);
  bytes_ += open_.size();
  lines_.push_back(std::move(open_));
  open_.clear();
  while (!lines_.empty() && (lines_.size() > options_.max_lines || bytes_ > options_.max_bytes)) {
    bytes_ -= lines_.front().size();
    lines_.pop_front();
  }
}

void LogTail::Copy(std::string_view line) {
  if (options_.copy_fd < 0) return;
  std::string text = options_.copy_prefix;
  text.append(line).append("\n");
  // A pipe that poll calls writable takes PIPE_BUF bytes at once, so no write here can wait.
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t n = std::min<std::size_t>(PIPE_BUF, text.size() - at);
    pollfd entry{options_.copy_fd, POLLOUT, 0};
    const bool writable = ::poll(&entry, 1, 0) == 1 && (entry.revents & (POLLERR | POLLNVAL)) == 0;
    const ssize_t written = writable ? ::write(options_.copy_fd, text.data() + at, n) : -1;
    if (written <= 0) {
      ++copy_dropped_;
      return;
    }
    at += static_cast<std::size_t>(written);
  }
}

}  // namespace arcflow::control
