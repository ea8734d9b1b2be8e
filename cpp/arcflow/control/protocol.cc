// SPDX-License-Identifier: Apache-2.0
// Failures, members and verdicts to and from JSON; the comparison of versions.
#include "arcflow/control/protocol.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "arcflow/control/fields.h"
#include "arcflow/control/text.h"

namespace arcflow::control {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxVersions = 64;
constexpr double kMaxTime = 1e12;

/// The last lines that fit into the bounds, cleaned, oldest first.
std::vector<std::string> BoundTail(const std::vector<std::string>& lines) {
  std::vector<std::string> kept;
  std::size_t bytes = 0;
  for (auto it = lines.rbegin(); it != lines.rend() && kept.size() < kMaxTailLines; ++it) {
    std::string line = CleanText(*it, kMaxLineBytes);
    bytes += line.size() + 4;  // quotes, comma, and a little
    if (bytes > kMaxTailBytes) break;
    kept.insert(kept.begin(), std::move(line));
  }
  return kept;
}

/// "3.11.2" → "3.11".
std::string MajorMinor(const std::string& version) {
  const auto first = version.find('.');
  const auto second = first == std::string::npos ? first : version.find('.', first + 1);
  return version.substr(0, second);
}

std::string Comparable(const std::string& name, const std::string& version) {
  return name == "python" ? MajorMinor(version) : version;
}

std::string VersionOf(const std::map<std::string, std::string>& versions, const std::string& name) {
  const auto it = versions.find(name);
  return it == versions.end() || it->second.empty() ? "missing" : it->second;
}

std::string Advice(const std::string& name) {
  if (name == "python") {
    return "use the same Python on the driver and all executors (spark.pyspark.python, or an "
           "environment shipped with --archives)";
  }
  return "install the same " + name +
         " on the driver and all executors, or ship one environment with --archives";
}

}  // namespace

std::string NodeMark(const std::string& run_id, int rank, std::int64_t agent_pid) {
  return run_id + ":" + std::to_string(rank) + ":" + std::to_string(agent_pid);
}

json Failure::ToJson() const {
  return json{{"rank", rank},
              {"role", role},
              {"host", host},
              {"cause", cause},
              {"type", CleanText(type, kMaxNameBytes)},
              {"message", CleanText(message, kMaxTextBytes)},
              {"traceback", CleanText(traceback, kMaxTextBytes)},
              {"signal", signal},
              {"exit_code", exit_code},
              {"log_tail", BoundTail(log_tail)},
              {"peer_loss", peer_loss},
              {"time", time_s}};
}

Result<Failure> Failure::FromJson(const json& object) {
  Failure f;
  Fields in(object, "failure");
  in.Int("rank", &f.rank, -1, kMaxSize - 1, Need::kOptional)
      .String("role", &f.role, kMaxNameBytes, Need::kOptional)
      .String("host", &f.host, kMaxNameBytes, Need::kOptional)
      .String("cause", &f.cause, kMaxNameBytes, Need::kRequired)
      .Text("type", &f.type, kMaxNameBytes)
      .Text("message", &f.message, kMaxTextBytes)
      .Text("traceback", &f.traceback, kMaxTextBytes)
      .String("signal", &f.signal, kMaxNameBytes, Need::kOptional)
      .Int("exit_code", &f.exit_code, -1, 255, Need::kOptional)
      .Strings("log_tail", &f.log_tail, kMaxTailLines, 2 * kMaxLineBytes, Need::kOptional)
      .Bool("peer_loss", &f.peer_loss, Need::kOptional)
      .Number("time", &f.time_s, 0, kMaxTime, Need::kOptional);
  ARC_TRY(in.status());
  f.log_tail = BoundTail(f.log_tail);
  return f;
}

std::string Failure::Summary() const {
  std::string text = rank >= 0 ? "rank " + std::to_string(rank) : "the run";
  if (!role.empty()) text += " (" + role + (host.empty() ? "" : " on " + host) + ")";
  text += ": " + cause;
  if (!signal.empty()) text += " " + signal;
  if (exit_code >= 0) text += " " + std::to_string(exit_code);
  if (!type.empty()) text += ": " + type;
  if (!message.empty()) text += ": " + message.substr(0, message.find('\n'));
  return text;
}

json Join::ToJson() const {
  return json{{"run_id", run_id},     {"rank", rank},          {"role", role}, {"index", index},
              {"host", host},         {"port", port},          {"pid", pid},   {"jvm_pid", jvm_pid},
              {"versions", versions}, {"side_port", side_port}};
}

Result<Join> Join::FromJson(const json& object) {
  Join j;
  Fields in(object, "join");
  in.String("run_id", &j.run_id, kMaxNameBytes, Need::kRequired)
      .Int("rank", &j.rank, 0, kMaxSize - 1, Need::kRequired)
      .String("role", &j.role, kMaxNameBytes, Need::kRequired)
      .Int("index", &j.index, 0, kMaxSize - 1, Need::kRequired)
      .String("host", &j.host, kMaxNameBytes, Need::kRequired)
      .Port("port", &j.port, Need::kRequired)
      .Port("side_port", &j.side_port, Need::kOptional)
      .Int64("pid", &j.pid, 0, INT32_MAX, Need::kOptional)
      .Int64("jvm_pid", &j.jvm_pid, 0, INT32_MAX, Need::kOptional)
      .StringMap("versions", &j.versions, kMaxVersions, kMaxNameBytes, Need::kOptional);
  ARC_TRY(in.status());
  return j;
}

json Member::ToJson() const {
  return json{{"rank", rank}, {"role", role}, {"index", index}, {"host", host}, {"port", port}};
}

Result<Member> Member::FromJson(const json& object) {
  Member m;
  Fields in(object, "member");
  in.Int("rank", &m.rank, 0, kMaxSize - 1, Need::kRequired)
      .String("role", &m.role, kMaxNameBytes, Need::kRequired)
      .Int("index", &m.index, 0, kMaxSize - 1, Need::kRequired)
      .String("host", &m.host, kMaxNameBytes, Need::kRequired)
      .Port("port", &m.port, Need::kRequired);
  ARC_TRY(in.status());
  return m;
}

json Verdict::ToJson() const {
  return json{{"code", CodeName(code)},
              {"reason", CleanText(reason, kMaxTextBytes)},
              {"failure", failure ? failure->ToJson() : json()}};
}

Result<Verdict> Verdict::FromJson(const json& object) {
  Verdict v;
  std::string code;
  Fields in(object, "stop");
  in.String("code", &code, kMaxNameBytes, Need::kRequired).Text("reason", &v.reason, kMaxTextBytes);
  v.code = CodeFromName(code);
  if (const json* failure = in.Find("failure", Need::kOptional)) {
    auto parsed = Failure::FromJson(*failure);
    in.Check("failure", parsed.status());
    if (parsed.ok()) v.failure = std::move(*parsed);
  }
  ARC_TRY(in.status());
  return v;
}

std::string_view Verdict::Name() const {
  if (failure) return "failed";
  return code == Code::kOk ? "ok" : "stopped";
}

double BeatInterval(double heartbeat_s, int size, double silence_s) {
  return std::max(heartbeat_s, std::min(size / kBeatsPerSecond, silence_s / 5));
}

double RowsInterval(int size) { return std::max(0.02, size / kRowsPerSecond); }

std::string VersionConflict(const std::vector<std::map<std::string, std::string>>& by_rank,
                            const std::map<std::string, std::string>& expected) {
  std::set<std::string> names;
  for (const auto& [name, version] : expected) names.insert(name);
  for (const auto& versions : by_rank) {
    for (const auto& [name, version] : versions) names.insert(name);
  }
  std::string text;
  for (const std::string& name : names) {
    std::set<std::string> different;
    std::string list;
    if (const auto it = expected.find(name); it != expected.end() && !it->second.empty()) {
      different.insert(Comparable(name, it->second));
      list += "driver " + it->second + ", ";
    }
    for (std::size_t rank = 0; rank < by_rank.size(); ++rank) {
      const std::string version = VersionOf(by_rank[rank], name);
      different.insert(Comparable(name, version));
      list += "rank " + std::to_string(rank) + " " + version + ", ";
    }
    if (different.size() < 2) continue;
    list.resize(list.size() - 2);
    text += (text.empty() ? "" : "\n") + name + " differs: " + list + "; " + Advice(name);
  }
  return text;
}

}  // namespace arcflow::control
