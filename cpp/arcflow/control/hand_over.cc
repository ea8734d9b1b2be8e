// SPDX-License-Identifier: Apache-2.0
// HandOver: what follows from a plan, and its end; giving and taking have sources of their own.
#include "arcflow/control/hand_over.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "arcflow/base/log.h"

namespace arcflow::control {

using nlohmann::json;

HandOver::HandOver(net::Loop& loop, Options options, feed::FeedService& service,
                   Callbacks callbacks)
    : loop_(loop),
      options_(std::move(options)),
      service_(service),
      callbacks_(std::move(callbacks)) {}

HandOver::~HandOver() { Close(); }

void HandOver::OnBalanced(const std::string& feed) {
  if (closed_) return;
  HandOffer offer;
  offer.feed = feed;
  for (const feed::Move& move : service_.Moves(feed)) {
    if (move.from == options_.rank) {
      offer.ranks.push_back(move.to);
    } else {
      jobs_.push_back({feed, move});
    }
  }
  if (!offer.ranks.empty()) {
    if (const Status status = Listen(); !status.ok()) return Fail(options_.rank, status);
    offer.port = listener_->port();
    callbacks_.to_coordinator(offer.ToJson());
  }
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
  for (auto& [rank, channel] : sources_) channel->Close();
  takers_.clear();
  sources_.clear();
}

}  // namespace arcflow::control
