// SPDX-License-Identifier: Apache-2.0
// Finding the active NameNode, trying again, and adding who we are.
#include "arcflow/hdfs/name_node.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <thread>

#include "arcflow/hdfs/answers.h"
#include "arcflow/hdfs/credentials.h"
#include "arcflow/hdfs/redirect.h"

namespace arcflow::hdfs {
namespace {

constexpr std::string_view kPrefix = "/webhdfs/v1";

std::string Describe(const Operation& operation) { return operation.name + " " + operation.path; }

Deadline Earlier(Deadline a, Deadline b) { return a.at() < b.at() ? a : b; }

}  // namespace

/// Outcome of one request: an answer that counts, or an error and what to do about it.
struct NameNode::Try {
  Status status;
  HttpResponse response;
  HttpUrl asked;
  bool next_node = false;  // standby, or not to be reached
  bool again = false;      // transient
  bool broken = false;     // no answer came
};

void Pause(const Options& options, int attempt, Deadline deadline) {
  auto pause = options.first_pause * (1 << std::min(attempt, 10));
  if (pause > options.longest_pause) pause = options.longest_pause;
  const auto until = std::min(Deadline::Clock::now() + pause, deadline.at());
  std::this_thread::sleep_until(until);
}

NameNode::NameNode(Service service, const Options& options, HttpClient* http)
    : service_(std::move(service)), options_(options), http_(http) {}

Result<std::string> NameNode::Token() {
  if (!options_.delegation_token.empty()) return options_.delegation_token;
  if (options_.token_file.empty()) return std::string();
  const std::lock_guard lock(token_mutex_);
  if (!token_loaded_) {
    ARC_ASSIGN(token_, LoadToken(options_.token_file, service_.name));
    token_loaded_ = true;
  }
  return token_;
}

/// Whether the token file holds another token by now: whoever renews tokens replaces it.
bool NameNode::ReloadToken() {
  if (!options_.delegation_token.empty() || options_.token_file.empty()) return false;
  auto fresh = LoadToken(options_.token_file, service_.name);
  const std::lock_guard lock(token_mutex_);
  if (!fresh.ok() || *fresh == token_) return false;
  token_ = std::move(*fresh);
  return true;
}

Result<HttpUrl> NameNode::MakeUrl(const Operation& operation, std::size_t index) {
  HttpUrl url = service_.namenodes[index];
  url.path = std::string(kPrefix) + EscapePath(operation.path);
  url.query = "op=" + operation.name;
  for (const auto& [key, value] : operation.parameters) {
    url.query += "&" + key + "=" + EscapeQuery(value);
  }
  ARC_ASSIGN(const std::string token, Token());
  if (!token.empty()) {
    url.query += "&delegation=" + EscapeQuery(token);
    return url;
  }
  if (!options_.kerberos && !options_.user.empty()) {
    url.query += "&user.name=" + EscapeQuery(options_.user);
  }
  if (!options_.proxy_user.empty()) url.query += "&doas=" + EscapeQuery(options_.proxy_user);
  return url;
}

NameNode::Try NameNode::Once(const Operation& operation, Deadline deadline, std::size_t index) {
  Try out;
  auto url = MakeUrl(operation, index);
  if (!url.ok()) {
    out.status = url.status();
    return out;
  }
  out.asked = *url;
  HttpRequest request;
  request.method = operation.method;
  request.url = std::move(*url);
  request.may_negotiate = true;
  request.deadline = deadline;
  auto response = http_->Perform(request);
  if (!response.ok()) {
    out.status = response.status();
    const Code code = out.status.code();
    out.broken = true;
    out.again = out.next_node = code == Code::kUnavailable || code == Code::kDataLoss;
    return out;
  }
  out.response = std::move(*response);
  const int status = out.response.status;
  if ((status >= 200 && status < 300) || status == 307) return out;
  out.status = ErrorOf(status, out.response.body, out.response.authenticate)
                   .WithContext(service_.namenodes[index].Authority());
  out.again = out.status.code() == Code::kUnavailable;
  out.next_node = out.again && IsStandby(out.response.body);
  return out;
}

int NameNode::Rounds() const {
  return service_.namenodes.size() > 1 ? options_.failover_rounds : options_.attempts;
}

/// Asks all NameNodes, at most `rounds` times with growing pauses between.
Result<HttpResponse> NameNode::Send(const Operation& operation, Deadline deadline, HttpUrl* asked,
                                    bool* uncertain, int rounds) {
  const Deadline whole = Earlier(deadline, Deadline::After(options_.operation_timeout));
  const std::size_t nodes = service_.namenodes.size();
  bool reloaded = false;
  Status last = Unavailable("not tried");
  for (int round = 0; round < rounds; ++round) {
    if (round > 0) Pause(options_, round - 1, whole);
    const std::size_t first = active_.load(std::memory_order_relaxed);  // a hint, no order needed
    for (std::size_t k = 0; k < nodes; ++k) {
      const std::size_t index = (first + k) % nodes;
      Try one = Once(operation, whole, index);
      if (one.status.code() == Code::kUnauthenticated && !reloaded && ReloadToken()) {
        reloaded = true;
        one = Once(operation, whole, index);
      }
      if (one.broken && uncertain != nullptr) *uncertain = true;
      if (one.status.ok()) {
        active_.store(index, std::memory_order_relaxed);
        if (asked != nullptr) *asked = std::move(one.asked);
        return std::move(one.response);
      }
      // The error of a NameNode that answers says more than that of one that does not.
      if (k == 0 || !one.next_node) last = one.status;
      if (!one.again) return one.status.WithContext(Describe(operation));
      if (!one.next_node) break;
    }
    if (whole.expired()) break;
  }
  return last.WithContext(Describe(operation) + " on " + service_.name);
}

Result<std::string> NameNode::Call(const Operation& operation, Deadline deadline, bool* uncertain) {
  ARC_ASSIGN(HttpResponse response, Send(operation, deadline, nullptr, uncertain, Rounds()));
  if (response.status == 307) {
    return Status(Code::kPermissionDenied,
                  Describe(operation) + ": a redirect where none belongs, to " +
                      EscapePath(response.location.substr(
                          0, std::min<std::size_t>(response.location.find('?'), 100))));
  }
  return std::move(response.body);
}

Result<HttpUrl> NameNode::Locate(const Operation& operation, Deadline deadline) {
  Operation asking = operation;
  asking.parameters.emplace_back("noredirect", "true");  // the address in a body, also from HttpFS
  HttpUrl asked;
  ARC_ASSIGN(const HttpResponse response, Send(asking, deadline, &asked, nullptr, Rounds()));
  std::string location = response.location;
  if (response.status != 307) {
    const auto json = nlohmann::json::parse(response.body, nullptr, /*allow_exceptions=*/false);
    const auto it = json.is_object() ? json.find("Location") : json.end();
    if (!json.is_object() || it == json.end() || !it->is_string()) {
      return DataLoss(Describe(operation) + ": " + asked.Authority() +
                      " names no DataNode in its answer; is it WebHDFS or HttpFS of Hadoop 3?");
    }
    location = it->get<std::string>();
  }
  auto to = CheckRedirect(asked, location, options_.allowed_hosts);
  if (!to.ok()) return to.status().WithContext(Describe(operation));
  return to;
}

Result<std::vector<LocatedBlock>> NameNode::Blocks(const std::string& path, std::uint64_t offset,
                                                   std::uint64_t length) {
  // A flag that only saves questions: no order is needed.
  if (!tells_blocks_.load(std::memory_order_relaxed)) return std::vector<LocatedBlock>();
  const Operation operation{
      "GET",
      "GET_BLOCK_LOCATIONS",
      path,
      {{"offset", std::to_string(offset)}, {"length", std::to_string(length)}}};
  HttpUrl asked;
  auto response = Send(operation, Deadline::Infinite(), &asked, nullptr, 1);
  auto blocks = response.ok() ? ParseBlockLocations(response->body) : response.status();
  if (!blocks.ok()) {
    // HttpFS and old NameNodes do not know the question, or answer another one.
    const Code code = blocks.status().code();
    if (code == Code::kInvalidArgument || code == Code::kUnimplemented ||
        (response.ok() && code == Code::kDataLoss)) {
      tells_blocks_.store(false, std::memory_order_relaxed);
      return std::vector<LocatedBlock>();
    }
    return blocks;
  }
  if (asked.scheme == "https") return std::vector<LocatedBlock>();  // the data must not be plain
  for (LocatedBlock& block : *blocks) {
    for (TransferAddress& place : block.places) {
      if (!MaySendTo(asked, place.ip, options_.allowed_hosts)) place.ip.clear();
      if (!MaySendTo(asked, place.host, options_.allowed_hosts)) place.host.clear();
    }
  }
  return blocks;
}

}  // namespace arcflow::hdfs
