// SPDX-License-Identifier: Apache-2.0
// The words by which runtimes say why they end a process.
#include "arcflow/control/crash_text.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <utility>

namespace arcflow::control {
namespace {

constexpr std::size_t kMaxTracebackLines = 200;

bool Has(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

std::string_view Trim(std::string_view text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front()))) {
    text.remove_prefix(1);
  }
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) {
    text.remove_suffix(1);
  }
  return text;
}

// glibc, malloc/malloc.c and debug/fortify_fail.c.
constexpr std::array<std::string_view, 15> kGlibc = {
    "double free or corruption",
    "free(): ",
    "malloc(): ",
    "malloc_consolidate(): ",
    "realloc(): ",
    "munmap_chunk(): ",
    "corrupted size vs. prev_size",
    "corrupted double-linked list",
    "sysmalloc: ",
    "*** stack smashing detected",
    "*** buffer overflow detected",
    "*** invalid ",
    "pure virtual method called",
    "Fatal glibc error",
    "LLVM ERROR",
};

// What TensorFlow's clients of the coordination service say before they end themselves, and what
// its collectives raise when another task is gone. Words that any program may use for its own
// reasons
// ("Connection refused") are not among them.
constexpr std::array<std::string_view, 9> kPeer = {
    "coordination service",
    "Coordination service",
    "coordination_service",
    "CoordinationService",
    "tensorflow.python.framework.errors_impl.UnavailableError",
    "Collective ops is aborted",
    "distributed service detected fatal errors",
    "recorded heartbeat timeout",
    "Shutdown barrier has failed",
};

/// "F0000 00:00:…", "F1128 05:44:…" (Abseil), "2026-11-28 05:44:…: F tensorflow/…" (TensorFlow).
bool IsFatalLine(std::string_view line) {
  if (line.size() > 6 && line[0] == 'F' &&
      std::all_of(line.begin() + 1, line.begin() + 5,
                  [](char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; }) &&
      line[5] == ' ') {
    return true;
  }
  const auto mark = line.find(": F ");
  return mark != std::string_view::npos && mark >= 19 && mark < 40 && line[4] == '-';
}

bool IsAssert(std::string_view line) { return Has(line, "Assertion `") && Has(line, "' failed"); }

bool IsGlibc(std::string_view line) {
  const std::string_view text = Trim(line);
  return std::any_of(kGlibc.begin(), kGlibc.end(),
                     [&](std::string_view word) { return text.substr(0, word.size()) == word; });
}

/// "terminate called after throwing an instance of 'std::bad_alloc'" and "  what():  …" after it.
bool ReadTerminate(const std::vector<std::string>& lines, std::size_t at, CrashText* crash) {
  const std::string_view line = Trim(lines[at]);
  if (!Has(line, "terminate called") && !Has(line, "libc++abi: terminating")) return false;
  crash->message = line;
  if (const auto open = line.find('\''); open != std::string_view::npos) {
    crash->type = line.substr(open + 1, line.rfind('\'') - open - 1);
  }
  for (std::size_t next = at + 1; next < lines.size() && next < at + 3; ++next) {
    const std::string_view what = Trim(lines[next]);
    if (what.substr(0, 7) != "what():") continue;
    crash->message += ": ";
    crash->message += Trim(what.substr(7));
  }
  return true;
}

/// "Fatal Python error: Segmentation fault", then threads and their frames.
bool ReadFaulthandler(const std::vector<std::string>& lines, std::size_t at, CrashText* crash) {
  const std::string_view line = Trim(lines[at]);
  if (line.substr(0, 19) != "Fatal Python error:") return false;
  crash->message = line;
  crash->type = "Fatal Python error";
  for (std::size_t i = at + 1; i < lines.size() && i < at + kMaxTracebackLines; ++i) {
    const std::string_view text = Trim(lines[i]);
    const bool frame = text.substr(0, 6) == "File \"" || text.substr(0, 7) == "Thread " ||
                       text.substr(0, 15) == "Current thread " || text.empty() ||
                       text.substr(0, 17) == "Extension modules" || Has(text, "<no Python frame>");
    if (!frame) break;
    crash->traceback += lines[i];
    crash->traceback += '\n';
  }
  while (!crash->traceback.empty() && crash->traceback.back() == '\n') crash->traceback.pop_back();
  return true;
}

}  // namespace

bool BlamesPeer(std::string_view text) {
  return std::any_of(kPeer.begin(), kPeer.end(),
                     [&](std::string_view word) { return Has(text, word); });
}

bool BlamesMemory(std::string_view type, std::string_view message) {
  if (type == "MemoryError" || type == "_ArrayMemoryError" || Has(type, "bad_alloc")) return true;
  return Has(message, "std::bad_alloc") || Has(message, "Cannot allocate memory") ||
         (Has(type, "ResourceExhausted") &&
          (Has(message, "OOM when allocating") || Has(message, "ut of memory") ||
           Has(message, "failed to allocate memory")));
}

CrashText ReadCrash(const std::vector<std::string>& lines) {
  CrashText crash;
  bool found = false;
  // The first words of a crash explain it; what follows (frames, a second abort) does not. But
  // faulthandler prints last, and its frames are wanted beside the words of the C++ side.
  for (std::size_t i = 0; i < lines.size(); ++i) {
    CrashText here;
    if (ReadTerminate(lines, i, &here)) {
      // as it stands
    } else if (ReadFaulthandler(lines, i, &here)) {
      crash.traceback = here.traceback;
    } else if (IsFatalLine(lines[i])) {
      here.message = Trim(lines[i]);
      here.type = Has(lines[i], "Check failed") ? "Check failed" : "fatal error";
    } else if (IsGlibc(lines[i])) {
      here.message = Trim(lines[i]);
      here.type = "memory corruption";
    } else if (IsAssert(lines[i]) || Has(lines[i], "Check failed: ")) {
      here.message = Trim(lines[i]);
      here.type = IsAssert(lines[i]) ? "assertion" : "Check failed";
    } else {
      continue;
    }
    if (std::exchange(found, true)) continue;
    crash.message = here.message;
    crash.type = here.type;
  }
  crash.out_of_memory = BlamesMemory(crash.type, crash.message);
  // The service's own lines come just before its clients abort; far above them is another story.
  const std::size_t begin = lines.size() > 30 ? lines.size() - 30 : 0;
  for (std::size_t i = begin; i < lines.size(); ++i) {
    crash.peer_loss = crash.peer_loss || BlamesPeer(lines[i]);
  }
  if (crash.peer_loss && crash.message.empty()) {
    const auto it = std::find_if(lines.begin() + static_cast<std::ptrdiff_t>(begin), lines.end(),
                                 [](const std::string& line) { return BlamesPeer(line); });
    crash.message = Trim(*it);
  }
  return crash;
}

}  // namespace arcflow::control
