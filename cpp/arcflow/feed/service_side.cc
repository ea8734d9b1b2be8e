// SPDX-License-Identifier: Apache-2.0
// FeedService: feeds that come and go while the service lives, and stages that become rows of
// others.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/feed/service_impl.h"

namespace arcflow::feed {

Status FeedService::Impl::AddFeed(const std::string& name, FeedOptions options) {
  if (feeds.contains(name))
    return Status(Code::kAlreadyExists, "there is a feed '" + name + "' already");
  auto feed = std::make_unique<Feed>();
  feed->name = name;
  feed->cache = options.cache;
  feed->schema = std::move(options.schema);
  feed->ranks.resize(static_cast<std::size_t>(std::max(size, rank + 1)));
  memory.Add(*feed);
  feeds[name] = std::move(feed);
  return Status::Ok();
}

void FeedService::Impl::RemoveFeed(const std::string& name) {
  const auto found = feeds.find(name);
  if (found == feeds.end()) return;
  Feed& feed = *found->second;
  std::erase_if(acquires, [&](const ParkedAcquire& each) { return each.feed == &feed; });
  changed.erase(name);
  feed.removed = true;
  Forget(feed);
}

/// Unless a session still looks at it.
void FeedService::Impl::Forget(Feed& feed) {
  const auto reads = [&](const auto& entry) { return entry.second.feed == &feed; };
  if (std::any_of(sessions.begin(), sessions.end(), reads)) return;
  memory.Remove(feed);
  feeds.erase(std::string(feed.name));
  Pump();
}

Status FeedService::Impl::Splice(const std::string& stage, const std::string& target) {
  ARC_ASSIGN(Feed * from, FindFeed(stage));
  ARC_ASSIGN(Feed * to, FindFeed(target));
  if (!from->log.ended()) return InvalidArgument("stage '" + stage + "' has not ended");
  const std::uint64_t before = to->log.rows();
  ARC_TRY(memory.Splice(*from, *to));
  if (to->log.rows() > before) changed.insert(target);
  return Status::Ok();
}

Status FeedService::AddFeed(const std::string& name, FeedOptions options) {
  return impl_->AddFeed(name, std::move(options));
}

void FeedService::RemoveFeed(const std::string& name) {
  impl_->RemoveFeed(name);
  impl_->Pump();
  impl_->Flush();
}

Status FeedService::EndFeed(const std::string& name) {
  const Result<Impl::Feed*> feed = impl_->FindFeed(name);
  ARC_TRY(feed.status());
  const Status status = impl_->OnEnd(**feed);
  impl_->Pump();
  impl_->Flush();
  return status;
}

Status FeedService::Splice(const std::string& stage, const std::string& target) {
  const Status status = impl_->Splice(stage, target);
  impl_->Pump();
  impl_->Flush();
  return status;
}

void FeedService::RefuseFeed(const std::string& name, const Status& why) {
  const Result<Impl::Feed*> feed = impl_->FindFeed(name);
  if (!feed.ok()) return;
  (*feed)->refusal = why;
  impl_->Pump();
  impl_->Flush();
}

std::uint64_t FeedService::DepthBytes(const std::string& name) const {
  const Result<Impl::Feed*> feed = impl_->FindFeed(name);
  return feed.ok() ? (*feed)->log.depth_bytes() : 0;
}

std::chrono::steady_clock::time_point FeedService::LastRead(const std::string& name) const {
  const Result<Impl::Feed*> feed = impl_->FindFeed(name);
  return feed.ok() ? (*feed)->last_get : std::chrono::steady_clock::time_point();
}

}  // namespace arcflow::feed
