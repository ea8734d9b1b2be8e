// SPDX-License-Identifier: Apache-2.0
// WideGroup: what ranks say to each other about the order of operations and about the end.
#include <chrono>
#include <cstring>
#include <utility>
#include <vector>

#include "arcflow/collective/wide_group.h"
#include "arcflow/collective/wide_word.h"

namespace arcflow::collective {
namespace {

// Rank 0 sees an end when all do; who hears nothing from it for so long believes its own eyes.
constexpr std::chrono::milliseconds kBelieve{500};

}  // namespace

// ---- the end ----

void WideGroup::Fail(const Status& failure) {
  const Status first = failure.ok() ? Internal("a group failed without a reason") : failure;
  std::shared_ptr<Engine> local;
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(failing_, true)) return;
    local = local_;
  }
  // The others are told before anybody here knows, who might end the process.
  Word word{WordType::kFail};
  word.code = static_cast<std::uint32_t>(first.code());
  const std::string_view text = first.message().substr(0, kMaxWordText);
  if (rank() == 0) {
    SayToAll(word, text);
  } else {
    Say(0, word, text);
  }
  {
    const std::lock_guard lock(mutex_);
    failure_ = first;
    changed_.notify_all();
  }
  link_.Stop();
  if (local != nullptr) local->Fail(first);
}

/// Fails, and returns the first failure of the group; not on threads of the transport.
Status WideGroup::FailAndWait(const Status& failure) {
  Fail(failure);
  std::unique_lock lock(mutex_);  // another thread may be telling the others just now
  changed_.wait(lock, [&] { return !failure_.ok(); });
  return failure_;
}

Status WideGroup::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

void WideGroup::Lost(int rank, const std::string& why) {
  Fail(Unavailable("rank " + std::to_string(rank) + " has died or left the group: " + why));
}

void WideGroup::Patrol() {
  std::optional<Suspicion> grown;
  {
    const std::lock_guard lock(mutex_);
    if (suspicion_ && Deadline::Clock::now() - suspicion_->since > kBelieve) grown = suspicion_;
  }
  if (grown) Lost(grown->rank, grown->why);
}

void WideGroup::OnDown(const std::shared_ptr<transport::Endpoint>& peer, const Status& status) {
  if (status.code() == Code::kCancelled) return;  // closed by this side
  int other = -1;
  {
    const std::lock_guard lock(mutex_);
    const auto found = rank_of_.find(peer->peer());
    if (found == rank_of_.end() || !failure_.ok()) return;
    other = found->second;
    if (rank() != 0 && other != 0 && !suspicion_) {
      suspicion_ = Suspicion{other, std::string(status.message()), Deadline::Clock::now()};
    }
  }
  if (rank() == 0 || other == 0) return Lost(other, std::string(status.message()));
  Word word{WordType::kLost};
  word.rank = static_cast<std::uint32_t>(other);
  Say(0, word, status.message().substr(0, kMaxWordText));
}

// ---- words ----

void WideGroup::Say(int rank, const Word& word, std::string_view text) {
  std::shared_ptr<transport::Endpoint> to;
  {
    const std::lock_guard lock(mutex_);
    to = endpoints_[static_cast<std::size_t>(rank)];
  }
  if (to == nullptr) return;  // the group was never made
  std::vector<std::byte> bytes(sizeof word + text.size());
  std::memcpy(bytes.data(), &word, sizeof word);
  if (!text.empty()) std::memcpy(bytes.data() + sizeof word, text.data(), text.size());
  const Status said = to->Send(kWideWordChannel, bytes);
  // One that is gone is found by the context.
  if (said.code() == Code::kResourceExhausted) Fail(said);
}

void WideGroup::SayToAll(const Word& word, std::string_view text) {
  for (int r = 0; r < ranks(); ++r) {
    if (r != rank()) Say(r, word, text);
  }
}

void WideGroup::OnWord(const std::shared_ptr<transport::Endpoint>& from,
                       std::span<const std::byte> bytes) {
  static_assert(sizeof(Word) == 112 && std::is_trivially_copyable_v<Word>);
  Word word{};
  if (bytes.size() < sizeof word || bytes.size() > sizeof word + kMaxWordText) {
    return Fail(Internal("a rank on another host says what this version does not know"));
  }
  std::memcpy(&word, bytes.data(), sizeof word);
  const std::string text(reinterpret_cast<const char*>(bytes.data()) + sizeof word,
                         bytes.size() - sizeof word);
  int other = -1;
  {
    const std::lock_guard lock(mutex_);
    const auto found = rank_of_.find(from->peer());
    if (found == rank_of_.end()) return;  // a member of the run, but not of this group
    other = found->second;
  }
  Hear(other, word, text);
}

void WideGroup::Hear(int from, const Word& word, const std::string& text) {
  const bool to_leader = word.type == WordType::kReady || word.type == WordType::kArrive ||
                         word.type == WordType::kLate || word.type == WordType::kLost;
  if (to_leader ? rank() != 0 : from != 0 && rank() != 0) {
    return Fail(Internal("rank " + std::to_string(from) + " says what only rank 0 may say"));
  }
  switch (word.type) {
    case WordType::kReady:
    case WordType::kOpen: {
      const std::lock_guard lock(mutex_);
      if (word.type == WordType::kReady) ready_ |= std::uint64_t{1} << from;
      open_ = open_ || word.type == WordType::kOpen;
      changed_.notify_all();
      return;
    }
    case WordType::kArrive:
      return Enter(from, word.key, word.first);
    case WordType::kOrder: {
      const std::lock_guard lock(mutex_);
      order_.push_back({word.key, word.first, word.other, word.first_rank, word.other_rank});
      changed_.notify_all();
      return;
    }
    case WordType::kLate: {
      std::string missing;
      {
        const std::lock_guard lock(agreement_mutex_);
        missing = agreement_.Missing(word.key);
      }
      if (missing.empty()) return;  // all have come meanwhile
      return Fail(DeadlineExceeded("ranks " + missing +
                                   " did not come to a collective within its time limit"));
    }
    case WordType::kLost:
      return Lost(static_cast<int>(word.rank), text);
    case WordType::kFail: {
      const bool known = word.code > 0 && word.code <= 16;
      return Fail(Status(known ? static_cast<Code>(word.code) : Code::kInternal, text));
    }
  }
  Fail(Internal("rank " + std::to_string(from) + " says what this version does not know"));
}

/// At rank 0: `rank` has come to an operation; the last one puts it into the order of all.
void WideGroup::Enter(int rank, std::uint64_t key, const Signature& what) {
  Status refused;
  {
    const std::lock_guard lock(agreement_mutex_);
    auto arrived = agreement_.Arrive(rank, key, what);
    refused = arrived.status();
    if (arrived.ok() && *arrived) {
      const OrderEntry& next = **arrived;
      Word word{WordType::kOrder};
      word.key = next.key;
      word.first = next.first;
      word.other = next.other;
      word.first_rank = next.first_rank;
      word.other_rank = next.other_rank;
      SayToAll(word);
      const std::lock_guard own(mutex_);
      order_.push_back(next);
      changed_.notify_all();
    }
  }
  if (!refused.ok()) Fail(refused);
}

}  // namespace arcflow::collective
