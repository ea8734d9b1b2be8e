// SPDX-License-Identifier: Apache-2.0
// Loop: an asio context with one thread; timers and watches are kept in maps so that cancelling is
// exact.
#include "arcflow/net/loop.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>

#include <asio/dispatch.hpp>
#include <asio/executor_work_guard.hpp>
#include <asio/io_context.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/post.hpp>
#include <asio/steady_timer.hpp>
#include <atomic>
#include <cerrno>
#include <map>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "arcflow/base/fd.h"

namespace arcflow::net {
namespace {

/// Blocks every signal for the calling thread while it lives, so that a thread started meanwhile
/// handles none.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_{};
};

/// asio takes a descriptor that epoll refuses (a plain file, /dev/null) and then never reports it;
/// we say so at once.
Status CheckPollable(const Fd& fd) {
  const Fd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll.valid()) return Status::FromErrno(errno, "epoll_create1");
  epoll_event event{};
  event.events = EPOLLIN;
  if (::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd.get(), &event) == 0) return Status::Ok();
  return InvalidArgument("descriptor cannot be watched: it is a plain file or device");
}

struct Timer {
  explicit Timer(asio::io_context& context) : timer(context) {}
  asio::steady_timer timer;
  std::chrono::nanoseconds period{0};  // 0: once
  std::function<void()> task;
};

struct Watch {
  explicit Watch(asio::io_context& context) : descriptor(context) {}
  void Close() {
    std::error_code ignored;
    descriptor.close(ignored);
  }
  asio::posix::stream_descriptor descriptor;  // a duplicate, so that the caller may close its own
  std::function<bool()> ready;
};

}  // namespace

struct Loop::Impl {
  asio::io_context context{1};
  asio::executor_work_guard<asio::io_context::executor_type> work{context.get_executor()};
  std::thread thread;
  std::atomic<std::thread::id> runner{};
  std::atomic<bool> stopping{false};
  std::atomic<std::uint64_t> next_id{1};
  // Touched on the loop thread only.
  std::map<TimerId, std::shared_ptr<Timer>> timers;
  std::map<WatchId, std::shared_ptr<Watch>> watches;
  std::vector<std::weak_ptr<LoopService>> services;

  void Arm(TimerId id, const std::shared_ptr<Timer>& timer, std::chrono::nanoseconds delay);
  void Arm(WatchId id, const std::shared_ptr<Watch>& watch);
  TimerId AddTimer(std::chrono::nanoseconds delay, std::chrono::nanoseconds period,
                   std::function<void()> task);
  void RunHere();
  void EndEverything();
};

void Loop::Impl::Arm(TimerId id, const std::shared_ptr<Timer>& timer,
                     std::chrono::nanoseconds delay) {
  timer->timer.expires_after(delay);
  timer->timer.async_wait([this, id, timer](const std::error_code& error) {
    // Absent: cancelled while this completion was already queued.
    if (error || timers.find(id) == timers.end()) return;
    if (timer->period.count() == 0) timers.erase(id);
    timer->task();
    if (timers.find(id) != timers.end()) Arm(id, timer, timer->period);
  });
}

void Loop::Impl::Arm(WatchId id, const std::shared_ptr<Watch>& watch) {
  watch->descriptor.async_wait(asio::posix::stream_descriptor::wait_read,
                               [this, id, watch](const std::error_code& error) {
                                 if (error || watches.find(id) == watches.end()) return;
                                 const bool more = watch->ready();
                                 if (watches.find(id) == watches.end())
                                   return;  // the callback unwatched itself
                                 if (more) {
                                   Arm(id, watch);
                                 } else {
                                   watch->Close();
                                   watches.erase(id);
                                 }
                               });
}

Loop::TimerId Loop::Impl::AddTimer(std::chrono::nanoseconds delay, std::chrono::nanoseconds period,
                                   std::function<void()> task) {
  const TimerId id = next_id.fetch_add(1, std::memory_order_relaxed);
  asio::dispatch(context, [this, id, delay, period, task = std::move(task)]() mutable {
    if (stopping) return;
    auto timer = std::make_shared<Timer>(context);
    timer->period = period;
    timer->task = std::move(task);
    timers.emplace(id, timer);
    Arm(id, timer, delay);
  });
  return id;
}

void Loop::Impl::RunHere() {
  runner = std::this_thread::get_id();
  context.run();
  EndEverything();
  runner = std::thread::id();
}

// Completes every pending operation, so that nothing that a handler owns outlives the loop.
void Loop::Impl::EndEverything() {
  runner = std::this_thread::get_id();
  stopping = true;
  for (auto& weak : std::exchange(services, {})) {
    if (auto service = weak.lock()) service->OnLoopEnd();
  }
  for (auto& [id, timer] : std::exchange(timers, {})) timer->timer.cancel();
  for (auto& [id, watch] : std::exchange(watches, {})) watch->Close();
  context.restart();
  context.poll();  // ends: everything is cancelled and nothing new is taken
  context.stop();
}

Loop::Loop(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<Loop>> Loop::Create() {
  try {
    return std::unique_ptr<Loop>(new Loop(std::make_unique<Impl>()));
  } catch (const std::system_error& e) {  // no descriptor left for epoll
    return ResourceExhausted(std::string("event loop: ") + e.what());
  }
}

Loop::~Loop() {
  Stop();
  Join();
  impl_->EndEverything();  // a loop that never ran, or got work after it had ended
}

Status Loop::StartThread() {
  if (impl_->thread.joinable()) return FailedPrecondition("the loop runs already");
  SignalsBlocked blocked;
  try {
    impl_->thread = std::thread([impl = impl_.get()] {
      ::pthread_setname_np(::pthread_self(), "arcflow-loop");
      impl->RunHere();
    });
  } catch (const std::system_error& e) {
    return ResourceExhausted(std::string("thread of the event loop: ") + e.what());
  }
  return Status::Ok();
}

void Loop::Run() { impl_->RunHere(); }

void Loop::Stop() { impl_->context.stop(); }

void Loop::Join() {
  if (impl_->thread.joinable()) impl_->thread.join();
}

bool Loop::in_loop_thread() const { return impl_->runner == std::this_thread::get_id(); }

void Loop::Post(std::function<void()> task) {
  if (!impl_->stopping) asio::post(impl_->context, std::move(task));
}

Loop::TimerId Loop::After(std::chrono::nanoseconds delay, std::function<void()> task) {
  return impl_->AddTimer(delay, std::chrono::nanoseconds(0), std::move(task));
}

Loop::TimerId Loop::Every(std::chrono::nanoseconds period, std::function<void()> task) {
  return impl_->AddTimer(period, period, std::move(task));
}

void Loop::CancelTimer(TimerId id) {
  asio::dispatch(impl_->context, [impl = impl_.get(), id] {
    const auto it = impl->timers.find(id);
    if (it == impl->timers.end()) return;
    it->second->timer.cancel();
    impl->timers.erase(it);
  });
}

Result<Loop::WatchId> Loop::WatchReadable(int fd, std::function<bool()> ready) {
  Fd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
  if (!copy.valid()) return Status::FromErrno(errno, "watch descriptor");
  ARC_TRY(CheckPollable(copy));
  auto watch = std::make_shared<Watch>(impl_->context);
  std::error_code error;
  watch->descriptor.assign(copy.get(), error);
  if (error) return InvalidArgument("descriptor cannot be watched: " + error.message());
  copy.release();
  watch->ready = std::move(ready);
  const WatchId id = impl_->next_id.fetch_add(1, std::memory_order_relaxed);
  asio::dispatch(impl_->context, [impl = impl_.get(), id, watch] {
    if (impl->stopping) return;
    impl->watches.emplace(id, watch);
    impl->Arm(id, watch);
  });
  return id;
}

void Loop::Unwatch(WatchId id) {
  asio::dispatch(impl_->context, [impl = impl_.get(), id] {
    const auto it = impl->watches.find(id);
    if (it == impl->watches.end()) return;
    it->second->Close();
    impl->watches.erase(it);
  });
}

asio::io_context& Loop::context() { return impl_->context; }

void Loop::Register(std::weak_ptr<LoopService> service) {
  asio::dispatch(impl_->context, [impl = impl_.get(), service = std::move(service)]() mutable {
    if (impl->stopping) {
      if (auto late = service.lock()) late->OnLoopEnd();
      return;
    }
    std::erase_if(impl->services, [](const auto& weak) { return weak.expired(); });
    impl->services.push_back(std::move(service));
  });
}

}  // namespace arcflow::net
