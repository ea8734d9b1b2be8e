// SPDX-License-Identifier: Apache-2.0
// AgentLink: the feeder's agent and one writer for each feed of its configuration.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>

#include "arcflow/base/deadline.h"
#include "arcflow/base/status.h"
#include "arcflow/columnar/arrow_abi.h"
#include "arcflow/control/feeder_link.h"
#include "arcflow/feed/writer.h"

namespace arcflow::bindings {

/// InvalidArgument unless `text` is a JSON object.
Result<nlohmann::json> ParseObject(const std::string& text, const char* what);

/// What Python sees as AgentLink, but for the conversion of types. Nothing here touches Python.
/// Threads: any; writing is serialised.
class AgentLink {
 public:
  struct FeedStats {
    std::uint64_t rows = 0;
    std::uint64_t bytes = 0;
    std::uint64_t wait_ns = 0;
  };
  struct Stats {
    control::FeederLink::Stats link;
    std::map<std::string, FeedStats> feeds;
  };

  /// Errors: those of FeederLink::Launch and Schema::FromJson.
  static Result<std::unique_ptr<AgentLink>> Launch(const std::string& agent_path,
                                                   const std::string& config_json,
                                                   const std::string& payload);

  /// As feed::Writer::Append: rows from `*taken` on; after DeadlineExceeded call again. NotFound
  /// for no such feed.
  Status Write(const std::string& feed, const ArrowSchema& schema, const ArrowArray& batch,
               Deadline deadline, std::size_t* taken);
  Status End(const std::string& feed);
  Stats stats();
  control::FeederLink& link() { return *link_; }

 private:
  AgentLink() = default;
  Status ReadFeeds(const nlohmann::json& config);
  Result<feed::Writer*> Find(const std::string& feed);

  std::map<std::string, feed::Writer::Options> options_;
  std::unique_ptr<control::FeederLink> link_;  // outlives the writers
  std::mutex mutex_;                           // guards the writers
  std::map<std::string, std::unique_ptr<feed::Writer>> writers_;
};

}  // namespace arcflow::bindings
