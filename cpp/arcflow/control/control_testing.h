// SPDX-License-Identifier: Apache-2.0
// What the control tests share: secrets, configurations, a look at which marked processes and
// descriptors there are.
#pragma once

#include <dirent.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "arcflow/base/deadline.h"
#include "arcflow/net/loop.h"

namespace arcflow::control::testing_support {

using nlohmann::json;

/// Far above what anything here takes, so that only a hang meets it.
inline constexpr double kPatience_s = 40;
inline Deadline Patience() { return Deadline::AfterSeconds(kPatience_s); }

inline std::string Secret() { return std::string(32, '\x5a'); }
inline std::string SecretHex() {
  std::string hex;
  for (int i = 0; i < 32; ++i) hex += "5a";
  return hex;
}

/// Polls until `condition` holds; false after kPatience_s.
inline bool Eventually(const std::function<bool()>& condition) {
  const Deadline deadline = Deadline::AfterSeconds(kPatience_s);
  while (!condition()) {
    if (deadline.expired()) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

/// Calls `call` on the loop's thread and waits until it has returned.
template <typename Call>
void RunOnLoop(net::Loop& loop, Call call) {
  std::promise<void> done;
  loop.Post([&] {
    call();
    done.set_value();
  });
  done.get_future().wait();
}

/// Marks this process's future children, so that they and theirs can be found. One mark per test.
class Mark {
 public:
  Mark() : value_("m" + std::to_string(::getpid()) + "x" + std::to_string(++count_)) {
    ::setenv("ARC_TEST_MARK", value_.c_str(), 1);
  }
  ~Mark() { ::unsetenv("ARC_TEST_MARK"); }

  /// Pids of living processes that carry the mark; zombies are nobody's work any more.
  std::vector<pid_t> Processes() const {
    std::vector<pid_t> found;
    const std::string wanted = "ARC_TEST_MARK=" + value_;
    std::error_code error;
    for (std::filesystem::directory_iterator it("/proc", error), end; !error && it != end;
         it.increment(error)) {
      const std::string name = it->path().filename().string();
      if (name.find_first_not_of("0123456789") != std::string::npos) continue;
      std::ifstream file("/proc/" + name + "/environ");
      const std::string environment{std::istreambuf_iterator<char>(file),
                                    std::istreambuf_iterator<char>()};
      if (("" + environment).find(wanted + '\0') != std::string::npos)
        found.push_back(std::atoi(name.c_str()));
    }
    return found;
  }
  std::string Describe() const {
    std::string text;
    for (const pid_t pid : Processes()) {
      std::ifstream file("/proc/" + std::to_string(pid) + "/cmdline");
      text += std::to_string(pid) + ": " +
              std::string{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()} +
              "\n";
    }
    return text;
  }

 private:
  static inline int count_ = 0;
  std::string value_;
};

/// Open descriptors of this process.
inline std::size_t OpenDescriptors() {
  std::size_t count = 0;
  std::error_code error;
  for (std::filesystem::directory_iterator it("/proc/self/fd", error), end; !error && it != end;
       it.increment(error))
    ++count;
  return count;
}

/// A configuration whose node is control_helper in `mode`.
inline json AgentConfigJson(int rank, int size, const std::string& helper,
                            const std::string& mode) {
  return json{{"run_id", "test"},
              {"secret", SecretHex()},
              {"rank", rank},
              {"size", size},
              {"role", rank == 0 ? "chief" : "worker"},
              {"index", rank == 0 ? 0 : rank - 1},
              {"host", "127.0.0.1"},
              {"python", {helper, "node", mode}},
              {"versions", {{"python", "3.11.2"}, {"arcflow", "0.1.0"}}},
              {"feed_memory_bytes", 1 << 20},
              {"grace_s", 0.3},
              {"heartbeat_s", 0.1},
              {"exit_timeout_s", 0.5},
              {"job", {{"epochs", 3}}},
              {"feeds",
               {{"train",
                 {{"schema",
                   {{"columns",
                     {{{"name", "x"},
                       {"dtype", "float32"},
                       {"source", "scalar"},
                       {"shape", json::array()}}}}}},
                  {"cache", "auto"}}}}}};
}

}  // namespace arcflow::control::testing_support
