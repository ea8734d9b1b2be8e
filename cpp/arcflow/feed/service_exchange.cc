// SPDX-License-Identifier: Apache-2.0
// FeedService: passes over rows that ranks have exchanged. Each is a feed of its own, made when a
// reader asks for it and filled by pieces of the logs of all ranks, this one's among them.
#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arcflow/feed/service_impl.h"

namespace arcflow::feed {

/// The feed whose rows a pass takes; nullptr when there is none or it does not exchange rows.
FeedService::Impl::Feed* FeedService::Impl::SourceOf(const ExchangePass& pass) {
  const auto found = feeds.find(pass.feed);
  return found != feeds.end() && found->second->exchange ? found->second.get() : nullptr;
}

/// The feed from whose log rows called by this name are given: for a pass, the one that it takes
/// rows of.
Result<FeedService::Impl::Feed*> FeedService::Impl::FindToGive(const std::string& name,
                                                               std::optional<ExchangePass>* pass) {
  *pass = ExchangePass::FromName(name);
  Feed* const source = *pass ? SourceOf(**pass) : nullptr;
  if (source != nullptr) return source;
  pass->reset();
  return FindFeed(name);
}

/// A feed for a new reader; the first one of a pass makes it.
Result<FeedService::Impl::Feed*> FeedService::Impl::FindToRead(const std::string& name) {
  const auto pass = ExchangePass::FromName(name);
  Feed* const source = pass && !feeds.contains(name) ? SourceOf(*pass) : nullptr;
  if (source == nullptr) return FindFeed(name);
  auto feed = std::make_unique<Feed>();
  feed->name = name;
  feed->cache = source->cache;
  feed->schema = source->schema;
  feed->ranks.resize(source->ranks.size());
  feed->balanced = true;
  feed->source = source;
  feed->pass = *pass;
  Feed& made = *feed;
  memory.Add(made);
  feeds[name] = std::move(feed);
  memory.OnEnded(made);  // no writer keeps its memory mapped
  source->newest_pass = name;
  DropOldPasses(*source);
  PlanPass(made);
  return &made;
}

/// Once its source has a plan, from which the rows of all ranks are known.
void FeedService::Impl::PlanPass(Feed& feed) {
  const Feed& source = *feed.source;
  if (feed.plan || !source.plan) return;
  const std::vector<std::uint64_t>& rows = source.plan->targets;
  feed.plan = Balance{rows, PlanExchange(rows, feed.pass.seed, feed.pass.epoch)};
  if (Target(feed) == 0) {
    feed.log.End();
  } else {
    planned.insert(feed.name);
  }
}

void FeedService::Impl::PlanPassesOf(Feed& source) {
  for (auto& [name, feed] : feeds) {
    if (feed->source == &source) PlanPass(*feed);
  }
}

/// All but the newest one, unless somebody still reads them.
void FeedService::Impl::DropOldPasses(const Feed& source) {
  std::vector<std::string> old;
  for (const auto& [name, feed] : feeds) {
    const auto reads = [&](const auto& entry) { return entry.second.feed == feed.get(); };
    if (feed->source == &source && name != source.newest_pass &&
        std::none_of(sessions.begin(), sessions.end(), reads)) {
      old.push_back(name);
    }
  }
  for (const std::string& name : old) {
    planned.erase(name);
    dropped.insert(name);
    RemoveFeed(name);
  }
}

Result<FeedService::Piece> FeedService::Impl::BeginPassPiece(Feed& source, const ExchangePass& pass,
                                                             int to, std::uint64_t row) {
  if (!failure.ok()) return failure;
  if (!source.plan || !source.log.ended())
    return FailedPrecondition("the rows of feed '" + source.name + "' are not all there yet");
  const auto own = feeds.find(pass.Name());  // read here too, as a rule
  const bool planned_here = own != feeds.end() && own->second->plan;
  if (!planned_here && (!source.given_pass || source.given_pass->pass != pass))
    source.given_pass = {pass, PlanExchange(source.plan->targets, pass.seed, pass.epoch)};
  const std::vector<Move>& moves =
      planned_here ? own->second->plan->moves : source.given_pass->moves;
  const Move* const move = MoveFor(moves, to, row);
  if (move == nullptr || source.log.Find(row).where != FeedLog::Where::kHere) {
    return InvalidArgument("rank " + std::to_string(to) + " does not get row " +
                           std::to_string(row) + " from rank " + std::to_string(rank) +
                           " in pass '" + pass.Name() + "'");
  }
  return LendPiece(source, to, row, move->first_row + move->rows);
}

bool FeedService::Exchanges(const std::string& name) const {
  return impl_->SourceOf({name, 0, 0}) != nullptr;
}

}  // namespace arcflow::feed
