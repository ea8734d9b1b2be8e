// SPDX-License-Identifier: Apache-2.0
// Core: what all parts of a context share. Internal to this layer.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>
#include <vector>

#include "arcflow/transport/context.h"
#include "arcflow/transport/gate.h"
#include "arcflow/transport/reactor.h"
#include "arcflow/transport/region_table.h"

namespace arcflow::transport {

class Session;

/// Callbacks that can be taken out with the promise that they do not run afterwards.
/// Threads: any.
template <typename Function>
class Hook {
 public:
  /// Waits for calls of the former function, except for one that this thread is in.
  void Set(Function function) {
    std::shared_ptr<Slot> next;
    if (function) {
      next = std::make_shared<Slot>();
      next->function = std::move(function);
    }
    std::shared_ptr<Slot> before;
    {
      std::unique_lock lock(mutex_);
      before = std::exchange(slot_, std::move(next));
    }
    if (before == nullptr) return;
    before->gate.Close();
    if (running_ != before.get()) before->gate.Wait();
  }
  /// False when there is none.
  template <typename... Args>
  bool Call(Args&&... args) {
    std::shared_ptr<Slot> slot;
    {
      std::shared_lock lock(mutex_);
      slot = slot_;
    }
    if (slot == nullptr) return false;
    GatePass pass(&slot->gate);
    if (!pass) return false;
    const void* outer = std::exchange(running_, slot.get());
    slot->function(std::forward<Args>(args)...);
    running_ = outer;
    return true;
  }
  bool set() const {
    std::shared_lock lock(mutex_);
    return slot_ != nullptr;
  }

 private:
  struct Slot {
    Function function;
    Gate gate;
  };
  static thread_local const void* running_;
  mutable std::shared_mutex mutex_;
  std::shared_ptr<Slot> slot_;
};

template <typename Function>
thread_local const void* Hook<Function>::running_ = nullptr;

/// Lifetime: shared by the context, its sessions and backends; outlives the threads.
struct Core {
  NodeId id;
  ContextOptions options;
  Counters counters;
  std::shared_ptr<RegionTable> regions;
  std::vector<std::unique_ptr<Reactor>> reactors;  // at least one
  Hook<Context::PeerDown> peer_down;
  std::function<void(std::shared_ptr<Session>)> adopt;  // a session is up; set before it starts
  std::function<void(const std::shared_ptr<Session>&)> forget;  // and has gone down

  Hook<MessageHandler>& HookOf(Channel channel) {
    std::lock_guard lock(mutex);
    auto& hook = handlers[channel];
    if (hook == nullptr) hook = std::make_unique<Hook<MessageHandler>>();
    return *hook;
  }
  bool Has(Channel channel) {
    std::lock_guard lock(mutex);
    const auto it = handlers.find(channel);
    return it != handlers.end() && it->second->set();
  }
  /// Reactors in turn, so that peers spread over the threads.
  Reactor& NextReactor() {
    return *reactors[turn.fetch_add(1, std::memory_order_relaxed) % reactors.size()];
  }

  std::mutex mutex;
  std::unordered_map<Channel, std::unique_ptr<Hook<MessageHandler>>> handlers;
  std::atomic<std::size_t> turn{0};
};

}  // namespace arcflow::transport
