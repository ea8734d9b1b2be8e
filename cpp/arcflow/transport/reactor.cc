// SPDX-License-Identifier: Apache-2.0
// The loop around epoll_wait.
#include "arcflow/transport/reactor.h"

#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <array>
#include <cerrno>
#include <utility>

namespace arcflow::transport {
namespace {

thread_local bool t_transport_thread = false;

}  // namespace

bool Reactor::OnTransportThread() { return t_transport_thread; }

void Reactor::MarkTransportThread() { t_transport_thread = true; }

Result<std::unique_ptr<Reactor>> Reactor::Start(const std::string& name) {
  std::unique_ptr<Reactor> reactor(new Reactor);
  reactor->epoll_ = Fd(::epoll_create1(EPOLL_CLOEXEC));
  if (!reactor->epoll_.valid()) return Status::FromErrno(errno, "epoll_create1");
  reactor->wake_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!reactor->wake_.valid()) return Status::FromErrno(errno, "eventfd");
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = 0;  // no Id
  if (::epoll_ctl(reactor->epoll_.get(), EPOLL_CTL_ADD, reactor->wake_.get(), &event) != 0) {
    return Status::FromErrno(errno, "epoll_ctl");
  }
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // the new thread inherits it
  reactor->thread_ = std::thread([r = reactor.get(), name] { r->Run(name); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return reactor;
}

Reactor::~Reactor() { Stop(); }

void Reactor::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  Wake();
  if (thread_.joinable()) thread_.join();
}

bool Reactor::Post(std::function<void()> task) {
  bool first = false;
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return false;
    first = posted_.empty();
    posted_.push_back(std::move(task));
  }
  if (first) Wake();
  return true;
}

void Reactor::Wake() {
  const std::uint64_t one = 1;
  // EAGAIN: the counter is full, the thread will wake anyway.
  [[maybe_unused]] const ssize_t n = ::write(wake_.get(), &one, sizeof(one));
}

Result<Reactor::Id> Reactor::Watch(int fd, std::uint32_t events, Ready ready) {
  epoll_event event{};
  event.events = events;
  std::lock_guard lock(mutex_);
  event.data.u64 = next_++;
  watches_[event.data.u64] = std::make_shared<Ready>(std::move(ready));
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    const Status status = Status::FromErrno(errno, "epoll_ctl");
    watches_.erase(event.data.u64);
    return status;
  }
  return event.data.u64;
}

void Reactor::Modify(Id id, int fd, std::uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = id;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event);
}

void Reactor::Unwatch(Id id, int fd) {
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  std::lock_guard lock(mutex_);
  watches_.erase(id);
}

void Reactor::SetTick(std::function<void()> tick) {
  Post([this, tick = std::move(tick)]() mutable { tick_ = std::move(tick); });
}

void Reactor::WantTicks(int change) {
  if (fast_.fetch_add(change, std::memory_order_relaxed) == 0 && change > 0) Wake();
}

void Reactor::RunPosted() {
  std::vector<std::function<void()>> tasks;
  {
    std::lock_guard lock(mutex_);
    tasks.swap(posted_);
  }
  for (auto& task : tasks) task();
}

void Reactor::Run(const std::string& name) {
  MarkTransportThread();
  pthread_setname_np(pthread_self(), name.substr(0, 15).c_str());
  std::array<epoll_event, 64> events;
  auto next_tick = std::chrono::steady_clock::now();
  for (;;) {
    const auto interval = fast_.load(std::memory_order_relaxed) > 0 ? kFastTick : kSlowTick;
    const int n = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()),
                               static_cast<int>(interval.count()));
    for (int i = 0; i < n; ++i) {
      if (events[i].data.u64 == 0) {
        std::uint64_t count = 0;
        [[maybe_unused]] const ssize_t got = ::read(wake_.get(), &count, sizeof(count));
        continue;
      }
      std::shared_ptr<Ready> ready;  // kept: the handler may unwatch itself
      {
        std::lock_guard lock(mutex_);
        const auto it = watches_.find(events[i].data.u64);
        if (it != watches_.end()) ready = it->second;
      }
      if (ready != nullptr) (*ready)(events[i].events);
    }
    RunPosted();
    const auto now = std::chrono::steady_clock::now();
    if (tick_ && now >= next_tick) {
      tick_();
      next_tick = now + interval;
    } else if (next_tick > now + interval) {
      next_tick = now + interval;  // ticks have become urgent
    }
    std::lock_guard lock(mutex_);
    if (stopping_ && posted_.empty()) break;
  }
  tick_ = nullptr;
  std::unordered_map<Id, std::shared_ptr<Ready>> left;
  {
    std::lock_guard lock(mutex_);
    left.swap(watches_);
  }
}

}  // namespace arcflow::transport
