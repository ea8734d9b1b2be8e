// SPDX-License-Identifier: Apache-2.0
// Reads the configuration of an agent and the tuning of a coordinator, field by field.
#include <nlohmann/json.hpp>

#include "arcflow/control/fields.h"
#include "arcflow/control/protocol.h"
#include "arcflow/control/text.h"

namespace arcflow::control {
namespace {

using nlohmann::json;

constexpr double kMaxSeconds = 1e7;  // a third of a year
constexpr std::size_t kMaxEntries = 4096;
constexpr std::size_t kMaxExchangedNameBytes = kMaxNameBytes - 48;  // its passes append numbers
constexpr std::size_t kMaxArgumentBytes = 128 * 1024;
constexpr std::size_t kMaxPathBytes = 4096;
constexpr int kMaxRespawns = 1'000'000;
constexpr std::uint64_t kMaxReportBytes = std::uint64_t{1} << 20;

/// {"schema": …, "cache": "auto", "balance": false, "exchange": false}
Result<feed::FeedOptions> FeedFromJson(const json& object) {
  feed::FeedOptions options;
  std::string cache = "auto";
  Fields in(object, "feed");
  const json* schema = in.Find("schema", Need::kRequired);
  in.String("cache", &cache, kMaxNameBytes, Need::kOptional)
      .Bool("balance", &options.balance, Need::kOptional)
      .Bool("exchange", &options.exchange, Need::kOptional);
  ARC_TRY(in.status());
  ARC_ASSIGN(options.schema, columnar::Schema::FromJson(*schema));
  ARC_ASSIGN(options.cache, feed::CacheFromName(cache));
  return options;
}

void ReadFeeds(Fields* in, std::map<std::string, feed::FeedOptions>* feeds) {
  const json* object = in->Find("feeds", Need::kOptional);
  if (object == nullptr) return;
  if (!object->is_object() || object->size() > kMaxFeeds) {
    in->Fail("feeds", "is not an object of feeds");
    return;
  }
  for (const auto& [name, value] : object->items()) {
    if (name.empty() || name.size() > kMaxNameBytes)
      in->Fail("feeds", "has a name that is empty or too long");
    auto feed = FeedFromJson(value);
    in->Check("feeds", feed.status().WithContext(CleanText(name, kMaxNameBytes)));
    if (feed.ok() && feed->exchange && name.size() > kMaxExchangedNameBytes)
      in->Fail("feeds", "has a name that is too long for a feed whose rows are exchanged");
    if (feed.ok()) feeds->emplace(name, std::move(*feed));
  }
}

Result<HostPort> HostPortFromJson(const json& object) {
  HostPort address;
  Fields in(object, "coordinator");
  in.String("host", &address.host, kMaxNameBytes, Need::kRequired)
      .Port("port", &address.port, Need::kRequired);
  if (address.host.empty()) in.Fail("host", "is empty");
  if (address.port == 0) in.Fail("port", "is 0");
  ARC_TRY(in.status());
  return address;
}

Result<AgentConfig::Hosted> HostedFromJson(const json& object) {
  AgentConfig::Hosted hosted;
  Fields in(object, "host_coordinator");
  in.String("bind", &hosted.bind, kMaxNameBytes, Need::kRequired)
      .Port("port", &hosted.port, Need::kOptional);
  ARC_TRY(in.status());
  ARC_ASSIGN(hosted.tuning, CoordinatorTuning::FromJson(object));
  return hosted;
}

void ReadCoordinator(Fields* in, AgentConfig* config) {
  if (const json* hosted = in->Find("host_coordinator", Need::kOptional)) {
    auto parsed = HostedFromJson(*hosted);
    in->Check("host_coordinator", parsed.status());
    if (parsed.ok()) config->host_coordinator = std::move(*parsed);
    return;
  }
  if (const json* address = in->Find("coordinator", Need::kRequired)) {
    auto parsed = HostPortFromJson(*address);
    in->Check("coordinator", parsed.status());
    if (parsed.ok()) config->coordinator = std::move(*parsed);
  }
}

void ReadSecret(Fields* in, std::string* secret) {
  std::string hex;
  in->String("secret", &hex, 2 * kSecretBytes, Need::kRequired);
  if (!in->ok()) return;
  auto bytes = HexDecode(hex);
  in->Check("secret", bytes.status());
  if (!bytes.ok()) return;
  if (bytes->size() != kSecretBytes) {
    in->Fail("secret", "is not " + std::to_string(kSecretBytes) + " bytes");
    return;
  }
  *secret = std::move(*bytes);
}

void ReadNode(Fields* in, AgentConfig* c) {
  std::uint64_t tail = c->log_tail_lines;
  std::uint64_t report = c->log_report_bytes;
  in->Strings("python", &c->python, kMaxEntries, kMaxArgumentBytes, Need::kRequired)
      .StringMap("env", &c->env, kMaxEntries, kMaxArgumentBytes, Need::kOptional)
      .String("cwd", &c->cwd, kMaxPathBytes, Need::kOptional)
      .Number("grace_s", &c->grace_s, 0, kMaxSeconds, Need::kOptional)
      .Number("exit_timeout_s", &c->exit_timeout_s, 0, kMaxSeconds, Need::kOptional)
      .Number("stall_timeout_s", &c->stall_timeout_s, 0, kMaxSeconds, Need::kOptional)
      .Number("stop_timeout_s", &c->stop_timeout_s, 0, kMaxSeconds, Need::kOptional)
      .Int("respawns", &c->respawns, 0, kMaxRespawns, Need::kOptional)
      .String("serving_at", &c->serving_at, kMaxNameBytes, Need::kOptional)
      .Uint64("log_tail_lines", &tail, kMaxTailLines, Need::kOptional)
      .Uint64("log_report_bytes", &report, kMaxReportBytes, Need::kOptional)
      .String("log_file", &c->log_file, kMaxPathBytes, Need::kOptional)
      .Bool("forward_log", &c->forward_log, Need::kOptional);
  c->log_tail_lines = static_cast<std::size_t>(tail);
  c->log_report_bytes = static_cast<std::size_t>(report);
  if (in->ok() && (c->python.empty() || c->python[0].empty())) in->Fail("python", "is empty");
  for (const auto& [name, value] : c->env) {
    if (name.empty() || name.find('=') != std::string::npos)
      in->Fail("env", "has a name that is empty or holds '='");
  }
  if (const json* job = in->Find("job", Need::kOptional)) {
    c->job_json = job->dump(-1, ' ', false, json::error_handler_t::replace);
  }
}

}  // namespace

Result<AgentConfig> AgentConfig::FromJson(const json& object) {
  AgentConfig c;
  Fields in(object, "config");
  in.String("run_id", &c.run_id, kMaxNameBytes, Need::kRequired)
      .Int("size", &c.size, 1, kMaxSize, Need::kRequired)
      .Int("rank", &c.rank, 0, kMaxSize - 1, Need::kRequired)
      .String("role", &c.role, kMaxNameBytes, Need::kRequired)
      .Int("index", &c.index, 0, kMaxSize - 1, Need::kRequired)
      .Int("feed_ranks", &c.feed_ranks, 0, kMaxSize, Need::kOptional)
      .String("host", &c.host, kMaxNameBytes, Need::kRequired)
      .Port("first_port", &c.first_port, Need::kOptional)
      .Port("last_port", &c.last_port, Need::kOptional)
      .StringMap("versions", &c.versions, 64, kMaxNameBytes, Need::kOptional)
      .Int64("jvm_pid", &c.jvm_pid, 0, INT32_MAX, Need::kOptional)
      .Uint64("feed_memory_bytes", &c.feed_memory_bytes, std::uint64_t{1} << 50, Need::kOptional)
      .Uint64("segment_bytes", &c.segment_bytes, std::uint64_t{1} << 40, Need::kOptional)
      .Bool("encrypt", &c.encrypt, Need::kOptional)
      .Bool("side", &c.side, Need::kOptional)
      .Strings("local_dirs", &c.local_dirs, kMaxEntries, kMaxPathBytes, Need::kOptional)
      .Number("heartbeat_s", &c.heartbeat_s, 0.01, kMaxSeconds, Need::kOptional)
      .Number("silence_s", &c.silence_s, 0.01, kMaxSeconds, Need::kOptional)
      .Number("connect_timeout_s", &c.connect_timeout_s, 0.01, kMaxSeconds, Need::kOptional);
  ReadSecret(&in, &c.secret);
  ReadCoordinator(&in, &c);
  ReadNode(&in, &c);
  ReadFeeds(&in, &c.feeds);
  if (in.ok() && c.rank >= c.size) in.Fail("rank", "is not below size");
  if (in.ok() && c.side && c.jvm_pid == 0) in.Fail("jvm_pid", "is needed by an agent with `side`");
  if (in.ok() && c.side && c.host_coordinator) in.Fail("side", "needs a coordinator in the driver");
  if (in.ok() && c.role.empty()) in.Fail("role", "is empty");
  if (in.ok() && c.feed_ranks > c.size) in.Fail("feed_ranks", "is above size");
  if (in.ok() && c.last_port < c.first_port) in.Fail("last_port", "is below first_port");
  ARC_TRY(in.status());
  return c;
}

Result<CoordinatorTuning> CoordinatorTuning::FromJson(const json& object) {
  CoordinatorTuning t;
  Fields in(object, "options");
  in.Number("join_timeout_s", &t.join_timeout_s, 0, kMaxSeconds, Need::kOptional)
      .Number("settle_s", &t.settle_s, 0, kMaxSeconds, Need::kOptional)
      .Number("settle_consequence_s", &t.settle_consequence_s, 0, kMaxSeconds, Need::kOptional)
      .Number("heartbeat_timeout_s", &t.heartbeat_timeout_s, 0.01, kMaxSeconds, Need::kOptional)
      .Number("barrier_timeout_s", &t.barrier_timeout_s, 0, kMaxSeconds, Need::kOptional)
      .Number("progress_interval_s", &t.progress_interval_s, 0, kMaxSeconds, Need::kOptional)
      .Number("stall_settle_s", &t.stall_settle_s, 0, kMaxSeconds, Need::kOptional)
      .Number("bye_timeout_s", &t.bye_timeout_s, 0, kMaxSeconds, Need::kOptional)
      .StringMap("expected_versions", &t.expected_versions, 64, kMaxNameBytes, Need::kOptional);
  ARC_TRY(in.status());
  return t;
}

json CoordinatorTuning::ToJson() const {
  return json{{"join_timeout_s", join_timeout_s},
              {"settle_s", settle_s},
              {"settle_consequence_s", settle_consequence_s},
              {"heartbeat_timeout_s", heartbeat_timeout_s},
              {"barrier_timeout_s", barrier_timeout_s},
              {"progress_interval_s", progress_interval_s},
              {"stall_settle_s", stall_settle_s},
              {"bye_timeout_s", bye_timeout_s},
              {"expected_versions", expected_versions}};
}

}  // namespace arcflow::control
