// SPDX-License-Identifier: Apache-2.0
// Ranks as threads of one test, on one board; values that tell rank and place.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "arcflow/collective/group.h"

namespace arcflow::collective::testing {

/// Groups of `ranks` ranks that share one mapping, so that a thread sanitizer sees all.
inline std::vector<std::unique_ptr<Group>> MakeRanks(int ranks, void (*probe)(Moment) = nullptr) {
  const Geometry geometry = Geometry::For(ranks);
  auto memfd = Board::Create(geometry);
  auto memory = Board::Map(*memfd, geometry);
  std::vector<std::unique_ptr<Group>> groups;
  for (int r = 0; r < ranks; ++r) groups.push_back(std::make_unique<Group>(*memory, r, probe));
  return groups;
}

/// Calls `body(rank)` in a thread for each rank, and waits for all.
inline void OnEachRank(int ranks, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) threads.emplace_back(body, r);
  for (std::thread& thread : threads) thread.join();
}

/// Element `i` of rank `rank`'s input number `salt`: small integers, exact in every type.
inline int ValueAt(int rank, std::size_t i, int salt = 0) {
  return static_cast<int>(
             (i * 31 + static_cast<std::size_t>(rank) * 7 + static_cast<std::size_t>(salt) * 13) %
             9) -
         4;
}

template <typename T>
std::vector<T> InputOf(int rank, std::size_t count, int salt = 0) {
  std::vector<T> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<T>(ValueAt(rank, i, salt));
  return values;
}

template <typename T>
const std::byte* In(const std::vector<T>& v) {
  return reinterpret_cast<const std::byte*>(v.data());
}
template <typename T>
std::byte* Out(std::vector<T>& v) {
  return reinterpret_cast<std::byte*>(v.data());
}

/// All-reduce (add) of float32 from `in` to `out`.
inline Operation AddFloats(std::uint64_t key, const std::vector<float>& in,
                           std::vector<float>& out) {
  Operation operation;
  operation.key = key;
  operation.what.count = in.size();
  operation.in = In(in);
  operation.out = Out(out);
  return operation;
}

inline std::vector<float> SumOf(int ranks, std::size_t count, int salt = 0) {
  std::vector<float> sum(count);
  for (int r = 0; r < ranks; ++r) {
    for (std::size_t i = 0; i < count; ++i) sum[i] += static_cast<float>(ValueAt(r, i, salt));
  }
  return sum;
}

/// Submits without waiting and collects the answers.
class Answers {
 public:
  explicit Answers(std::size_t count) : left_(count), statuses_(count) {}
  std::function<void(const Status&)> For(std::size_t i) {
    return [this, i](const Status& status) {
      const std::lock_guard lock(mutex_);
      statuses_[i] = status;
      --left_;
      changed_.notify_all();
    };
  }
  std::vector<Status> Wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return left_ == 0; });
    return statuses_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t left_;
  std::vector<Status> statuses_;
};

}  // namespace arcflow::collective::testing
