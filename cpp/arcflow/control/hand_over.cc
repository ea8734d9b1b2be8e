// SPDX-License-Identifier: Apache-2.0
// HandOver: what follows from a plan, and its end; giving and taking have sources of their own.
#include "arcflow/control/hand_over.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "arcflow/base/log.h"
#include "arcflow/feed/exchange.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

/// Under this name a rank offers what it has for passes of exchanged rows.
std::string OfferOf(const std::string& feed) { return feed + "@"; }

}  // namespace

HandOver::HandOver(net::Loop& loop, Options options, feed::FeedService& service,
                   Callbacks callbacks)
    : loop_(loop),
      options_(std::move(options)),
      service_(service),
      callbacks_(std::move(callbacks)) {}

HandOver::~HandOver() { Close(); }

void HandOver::OnBalanced(const std::string& feed) {
  if (closed_) return;
  const auto pass = feed::ExchangePass::FromName(feed);
  const bool exchanged = pass && service_.Exchanges(pass->feed);
  HandOffer offer;
  offer.feed = feed;
  for (const feed::Move& move : service_.Moves(feed)) {
    if (exchanged) {
      if (move.to == options_.rank) jobs_.push_back({feed, OfferOf(pass->feed), move});
    } else if (move.from == options_.rank) {
      offer.ranks.push_back(move.to);
    } else {
      jobs_.push_back({feed, feed, move});
    }
  }
  if (!offer.ranks.empty()) {
    if (const Status status = Listen(); !status.ok()) return Fail(options_.rank, status);
    offer.port = listener_->port();
    callbacks_.to_coordinator(offer.ToJson());
  }
  Next();
}

void HandOver::OnSettled(const std::string& feed) {
  if (closed_ || failed_) return;
  if (const Status status = Listen(); !status.ok()) return Fail(options_.rank, status);
  HandOffer offer;
  offer.feed = OfferOf(feed);
  offer.port = listener_->port();
  for (int rank = 0; rank < options_.size; ++rank) {
    if (rank != options_.rank) offer.ranks.push_back(rank);
  }
  offers_[{options_.rank, offer.feed}] = offer.port;
  callbacks_.to_coordinator(offer.ToJson());
  Next();
}

void HandOver::OnDropped(const std::string& feed) {
  if (closed_ || failed_ || jobs_.empty()) return;
  if (incoming_ && jobs_.front().feed == feed) {
    // What is under way on this connection belongs to nobody; the next job gets a new one.
    const auto source = sources_.find(jobs_.front().move.from);
    if (source != sources_.end()) {
      const auto channel = std::move(source->second.channel);
      sources_.erase(source);
      channel->Close();
    }
    incoming_.reset();
  }
  std::erase_if(jobs_, [&](const Job& job) { return job.feed == feed; });
  Next();
}

Status HandOver::OnCoordinator(const json& message) {
  ARC_ASSIGN(const HandPlace place, HandPlace::FromJson(message));
  offers_[{place.rank, place.feed}] = place.port;
  Next();
  return Status::Ok();
}

void HandOver::Send(net::Channel& channel, const json& message) {
  if (const Status status = channel.Send(message); !status.ok()) channel.Abort(status);
}

void HandOver::Fail(int rank, const Status& why) {
  if (closed_ || failed_) return;
  failed_ = true;
  jobs_.clear();
  incoming_.reset();
  callbacks_.failed(rank, why);
}

void HandOver::Close() {
  if (closed_) return;
  closed_ = true;
  jobs_.clear();
  incoming_.reset();
  listener_.reset();
  for (auto& [id, taker] : takers_) {
    EndPiece(taker);
    taker.channel->Close();
  }
  for (auto& [rank, source] : sources_) source.channel->Close();
  takers_.clear();
  sources_.clear();
}

}  // namespace arcflow::control
