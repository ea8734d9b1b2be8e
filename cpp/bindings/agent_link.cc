// SPDX-License-Identifier: Apache-2.0
// AgentLink: the configuration's feeds become writers over the agent's grants.
#include "agent_link.h"

#include <utility>

#include "arcflow/columnar/schema.h"

namespace arcflow::bindings {

using nlohmann::json;

namespace {

constexpr std::size_t kDefaultSegmentBytes = std::size_t{4} << 20;

}  // namespace

Result<json> ParseObject(const std::string& text, const char* what) {
  json parsed = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return InvalidArgument(std::string(what) + " is not a JSON object");
  return parsed;
}

Result<std::unique_ptr<AgentLink>> AgentLink::Launch(const std::string& agent_path,
                                                     const std::string& config_json,
                                                     const std::string& payload) {
  auto link = std::unique_ptr<AgentLink>(new AgentLink());
  ARC_ASSIGN(const json config, ParseObject(config_json, "config_json"));
  ARC_TRY(link->ReadFeeds(config));
  ARC_ASSIGN(link->link_, control::FeederLink::Launch(agent_path, config_json, payload));
  for (const auto& [feed, options] : link->options_) {
    link->writers_.emplace(feed, std::make_unique<feed::Writer>(options, *link->link_));
  }
  return link;
}

Status AgentLink::ReadFeeds(const json& config) {
  const auto bytes = config.find("segment_bytes");
  if (bytes != config.end() && (!bytes->is_number_unsigned() || *bytes == 0)) {
    return InvalidArgument("segment_bytes is not a positive whole number");
  }
  const auto feeds = config.find("feeds");
  if (feeds == config.end()) return Status::Ok();
  if (!feeds->is_object()) return InvalidArgument("feeds is not an object");
  for (const auto& [name, feed] : feeds->items()) {
    if (!feed.is_object() || !feed.contains("schema")) {
      return InvalidArgument("feed " + name + " has no schema");
    }
    auto schema = columnar::Schema::FromJson(feed["schema"]);
    if (!schema.ok()) return schema.status().WithContext("feed " + name);
    options_[name] = {name, std::move(*schema),
                      bytes == config.end() ? kDefaultSegmentBytes : bytes->get<std::size_t>()};
  }
  return Status::Ok();
}

Result<feed::Writer*> AgentLink::Find(const std::string& feed) {
  const auto it = writers_.find(feed);
  if (it == writers_.end()) return NotFound("there is no feed '" + feed + "' in this run");
  return it->second.get();
}

Status AgentLink::Write(const std::string& feed, const ArrowSchema& schema, const ArrowArray& batch,
                        Deadline deadline, std::size_t* taken) {
  const std::lock_guard lock(mutex_);
  ARC_ASSIGN(feed::Writer * writer, Find(feed));
  return writer->Append(schema, batch, deadline, taken);
}

Status AgentLink::End(const std::string& feed) {
  const std::lock_guard lock(mutex_);
  ARC_ASSIGN(feed::Writer * writer, Find(feed));
  ARC_TRY(writer->Finish());
  link_->memory().DropFeed(feed);
  return link_->End(feed);
}

AgentLink::Stats AgentLink::stats() {
  const std::lock_guard lock(mutex_);
  Stats stats;
  stats.link = link_->stats();
  for (const auto& [name, writer] : writers_) {
    stats.feeds[name] = {writer->rows(), writer->bytes(), writer->wait_ns()};
  }
  return stats;
}

}  // namespace arcflow::bindings
