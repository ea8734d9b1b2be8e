// SPDX-License-Identifier: Apache-2.0
// Ranges: asking, checking what came, going on elsewhere.
#include "arcflow/hdfs/range_fetcher.h"

#include <algorithm>
#include <cstring>

#include "arcflow/hdfs/answers.h"

namespace arcflow::hdfs {
namespace {

constexpr std::size_t kMaxAddresses = 4096;
/// Blocks whose places are asked for at once.
constexpr std::uint64_t kBlocksAtOnce = 32;

/// Whether another DataNode, or the same a little later, may do better.
bool MayHelp(const Status& status) {
  switch (status.code()) {
    case Code::kUnavailable:
    case Code::kDataLoss:
    case Code::kUnauthenticated:
    case Code::kPermissionDenied:
    case Code::kUnknown:
      return true;
    default:
      return false;
  }
}

/// Whether the error is about who we are: worth one more try with a new address, not more.
bool AboutRights(const Status& status) {
  return status.code() == Code::kUnauthenticated || status.code() == Code::kPermissionDenied;
}

std::string Joined(const std::set<std::string>& hosts) {
  std::string out;
  for (const std::string& host : hosts) out += (out.empty() ? "" : ",") + host;
  return out;
}

}  // namespace

Status RangeFetcher::Fetch(std::uint64_t offset, std::span<char> out) {
  while (!out.empty()) {
    const std::uint64_t left_in_block = block_bytes_ - offset % block_bytes_;
    const std::size_t n =
        static_cast<std::size_t>(std::min<std::uint64_t>(out.size(), left_in_block));
    ARC_TRY(FetchPiece(offset, out.first(n)));
    out = out.subspan(n);
    offset += n;
  }
  return Status::Ok();
}

Result<RangeFetcher::Address> RangeFetcher::Find(std::uint64_t block, std::uint64_t offset,
                                                 const std::set<std::string>& excluded) {
  {
    const std::lock_guard lock(mutex_);
    const auto it = addresses_.find(block);
    if (it != addresses_.end()) return Address{it->second, true};
  }
  Operation open{"GET", "OPEN", path_, {{"offset", std::to_string(offset)}}};
  if (!excluded.empty()) open.parameters.emplace_back("excludedatanodes", Joined(excluded));
  ARC_ASSIGN(HttpUrl url, name_node_->Locate(open));
  const std::lock_guard lock(mutex_);
  if (addresses_.size() >= kMaxAddresses) addresses_.clear();
  addresses_[block] = url;
  return Address{std::move(url), false};
}

/// Unless another thread has found a better one meanwhile.
void RangeFetcher::Forget(std::uint64_t block, const HttpUrl& bad) {
  const std::lock_guard lock(mutex_);
  const auto it = addresses_.find(block);
  if (it != addresses_.end() && it->second.Authority() == bad.Authority()) addresses_.erase(it);
}

/// The block that holds `offset`; null when it cannot be read directly, whatever the reason.
std::shared_ptr<const LocatedBlock> RangeFetcher::BlockAt(std::uint64_t offset, bool* remembered) {
  const std::uint64_t number = offset / block_bytes_;
  {
    const std::lock_guard lock(mutex_);
    const auto it = located_.find(number);
    *remembered = it != located_.end();
    if (*remembered) return it->second;
  }
  const std::uint64_t begin = number * block_bytes_;
  const std::uint64_t length =
      std::min(kBlocksAtOnce, (std::uint64_t{1} << 62) / block_bytes_) * block_bytes_;
  auto blocks = name_node_->Blocks(path_, begin, length);
  const std::lock_guard lock(mutex_);
  if (located_.size() >= kMaxAddresses) located_.clear();
  auto& found = located_[number];  // nothing known: WebHDFS from now on
  if (!blocks.ok()) return nullptr;
  for (LocatedBlock& block : *blocks) {
    // Blocks of other sizes than the file's (concat) are left to WebHDFS.
    if (block.offset % block_bytes_ != 0 || block.length > block_bytes_) continue;
    located_[block.offset / block_bytes_] = std::make_shared<const LocatedBlock>(std::move(block));
  }
  return found;
}

void RangeFetcher::ForgetBlock(std::uint64_t offset) {
  const std::lock_guard lock(mutex_);
  located_.erase(offset / block_bytes_);
}

/// From one DataNode after the other. Errors: FailedPrecondition when none can be asked now.
Status RangeFetcher::FetchFrom(const LocatedBlock& block, std::uint64_t offset, std::span<char> out,
                               std::size_t* done) {
  if (offset + out.size() > block.offset + block.length) return DataLoss("the block has grown");
  Status last = FailedPrecondition("no DataNode can be asked");
  for (const TransferAddress& place : block.places) {
    const bool by_name = place.ip.empty() || (options_.use_host_names && !place.host.empty());
    const std::string& host = by_name ? place.host : place.ip;
    if (host.empty()) continue;
    Status status =
        blocks_->Read(block, host, place.port, offset - block.offset, out, done, &cancelled_);
    if (status.ok() || status.code() == Code::kCancelled) return status;
    if (status.code() != Code::kFailedPrecondition) last = std::move(status);
  }
  return last;
}

/// Whether all of it came; else WebHDFS goes on from `*done`. A block whose place has changed, or
/// whose token is too old, is asked for once more.
bool RangeFetcher::FetchDirect(std::uint64_t offset, std::span<char> out, std::size_t* done) {
  for (int round = 0; round < 2; ++round) {
    bool remembered = false;
    const auto block = BlockAt(offset, &remembered);
    if (block == nullptr) return false;
    const Status status = FetchFrom(*block, offset, out, done);
    if (status.ok()) return true;
    if (status.code() == Code::kCancelled || status.code() == Code::kFailedPrecondition) break;
    ForgetBlock(offset);
    if (!remembered) break;
  }
  return false;
}

Status RangeFetcher::FetchPiece(std::uint64_t offset, std::span<char> out) {
  const std::uint64_t block = offset / block_bytes_;
  std::set<std::string> excluded;
  std::size_t done = 0;
  if (blocks_ != nullptr && FetchDirect(offset, out, &done)) return Status::Ok();
  Status last;
  for (int attempt = 0; attempt < options_.attempts; ++attempt) {
    if (cancelled_.load(std::memory_order_relaxed)) return Cancelled(path_ + ": reading was ended");
    if (attempt > 1) Pause(options_, attempt - 2, Deadline::Infinite());  // the first is at once
    auto address = Find(block, offset + done, excluded);
    if (!address.ok()) {
      last = address.status();
      if (excluded.empty() || !MayHelp(last) || AboutRights(last)) break;
      excluded.clear();  // no other DataNode has the block
      continue;
    }
    const std::size_t before = done;
    last = FetchOnce(address->url, offset + done, out.subspan(done), &done);
    if (last.ok()) return last;
    Forget(block, address->url);
    if (!MayHelp(last) || (AboutRights(last) && !address->remembered)) break;
    excluded.insert(address->url.host);
    if (done > before) attempt = std::min(attempt, 0);  // it moves: that is no failure of its own
  }
  return last.WithContext(path_ + " at offset " + std::to_string(offset + done));
}

Status RangeFetcher::FetchOnce(const HttpUrl& data_node, std::uint64_t offset, std::span<char> out,
                               std::size_t* done) {
  HttpRequest request;
  request.url = data_node;
  request.url.query = WithQueryValue(request.url.query, "offset", std::to_string(offset));
  request.url.query = WithQueryValue(request.url.query, "length", std::to_string(out.size()));
  request.cancelled = &cancelled_;
  const auto where = [&] { return data_node.Authority() + " "; };
  request.check = [&](const HttpResponse& response) -> Status {
    const std::string& range = response.content_range;
    if (!range.empty() && range.rfind("bytes " + std::to_string(offset) + "-", 0) != 0) {
      return DataLoss(where() +
                      "sends another range than asked for: " + EscapePath(range.substr(0, 80)));
    }
    if (response.content_length.value_or(out.size()) != out.size()) {
      return DataLoss(where() + "announces " + std::to_string(*response.content_length) +
                      " bytes instead of the " + std::to_string(out.size()) + " asked for");
    }
    return Status::Ok();
  };
  std::size_t got = 0;
  bool too_many = false;
  request.sink = [&](std::span<const char> bytes) -> Status {
    if (bytes.size() > out.size() - got) {
      too_many = true;
      return DataLoss(where() + "sends more than the " + std::to_string(out.size()) +
                      " bytes asked for");
    }
    std::memcpy(out.data() + got, bytes.data(), bytes.size());
    got += bytes.size();
    return Status::Ok();
  };
  auto response = http_->Perform(request);
  if (!response.ok()) {
    // What came before a transfer broke off is good; of an answer that is too long nothing is.
    if (!too_many && got < out.size()) *done += got;
    return response.status();
  }
  if (response->status < 200 || response->status > 299) {
    return ErrorOf(response->status, response->body, response->authenticate)
        .WithContext(data_node.Authority());
  }
  if (got != out.size()) {
    return DataLoss(where() + "sends " + std::to_string(got) + " of the " +
                    std::to_string(out.size()) + " bytes asked for");
  }
  *done += got;
  return Status::Ok();
}

}  // namespace arcflow::hdfs
