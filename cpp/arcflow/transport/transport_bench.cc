// SPDX-License-Identifier: Apache-2.0
// Transport micro-benches: two contexts in two processes, one operation at a time or several.
#include <benchmark/benchmark.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "arcflow/transport/context.h"
#include "arcflow/transport/peer_process_testing.h"

namespace arcflow::transport {
namespace {

/// One pair for each backend, made at its first use. The peers are forked before any thread starts.
struct Pair {
  explicit Pair(ContextOptions o) : options(std::move(o)), peer(options) {}
  void Open() {
    if (context != nullptr) return;
    auto made = Context::Create(options);
    if (!made.ok()) return;
    context = std::move(*made);
    auto connected = context->Connect(peer.address(), Deadline::AfterSeconds(10));
    if (connected.ok()) endpoint = *connected;
    region = peer.MakeRegion(kBytes);
    memory.resize(kBytes);
  }

  static constexpr std::size_t kBytes = std::size_t{64} << 20;
  ContextOptions options;
  PeerProcess peer;
  std::unique_ptr<Context> context;
  std::shared_ptr<Endpoint> endpoint;
  RemoteRegion region;
  std::vector<std::byte> memory;
};

ContextOptions OptionsFor(const std::string& backend, bool direct) {
  ContextOptions options;
  options.secret = "0123456789abcdef0123456789abcdef";
  options.backends = {backend};
  options.shm_direct = direct;
  return options;
}

void Put(benchmark::State& state, Pair& pair) {
  pair.Open();
  if (pair.endpoint == nullptr) return state.SkipWithError("no connection");
  const auto n = static_cast<std::size_t>(state.range(0));
  for (auto _ : state) {
    const Status status =
        pair.endpoint->PutAndWait({pair.memory.data(), n}, pair.region, 0, PutOptions());
    if (!status.ok()) return state.SkipWithError(status.ToString().c_str());
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * n));
}

void Get(benchmark::State& state, Pair& pair) {
  pair.Open();
  if (pair.endpoint == nullptr) return state.SkipWithError("no connection");
  const auto n = static_cast<std::size_t>(state.range(0));
  for (auto _ : state) {
    const Status status =
        pair.endpoint->GetAndWait({pair.memory.data(), n}, pair.region, 0, Deadline::Infinite());
    if (!status.ok()) return state.SkipWithError(status.ToString().c_str());
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * n));
}

/// A message there and its echo back.
void Echo(benchmark::State& state, Pair& pair) {
  pair.Open();
  if (pair.endpoint == nullptr) return state.SkipWithError("no connection");
  std::mutex mutex;
  std::condition_variable changed;
  std::uint64_t answers = 0;
  pair.context->Handle(kEchoChannel, [&](const auto&, std::span<const std::byte>) {
    std::lock_guard lock(mutex);
    ++answers;
    changed.notify_all();
  });
  const std::vector<std::byte> message(static_cast<std::size_t>(state.range(0)));
  std::uint64_t sent = 0;
  for (auto _ : state) {
    if (!pair.endpoint->Send(kEchoChannel, message).ok()) return state.SkipWithError("send");
    ++sent;
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return answers == sent; });
  }
  pair.context->Handle(kEchoChannel, {});
  state.SetItemsProcessed(static_cast<std::int64_t>(sent));
}

void Register(benchmark::State& state, Pair& pair) {
  pair.Open();
  for (auto _ : state) {
    auto region = pair.context->Register(pair.memory, Access::kReadWrite);
    benchmark::DoNotOptimize(region);
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()));
}

std::vector<std::unique_ptr<Pair>> RegisterAll() {
  std::vector<std::unique_ptr<Pair>> pairs;
  const std::vector<std::pair<std::string, ContextOptions>> kinds = {
      {"shm", OptionsFor("shm", true)},
      {"shm_slots", OptionsFor("shm", false)},
      {"tcp", OptionsFor("tcp", true)},
      {"ucx", OptionsFor("ucx", true)}};
  for (const auto& [name, options] : kinds) {
    pairs.push_back(std::make_unique<Pair>(options));
    Pair* pair = pairs.back().get();
    const auto add = [&](const std::string& verb, auto function, std::vector<std::int64_t> sizes) {
      for (const std::int64_t n : sizes) {
        benchmark::RegisterBenchmark(
            ("BM_" + verb + "/" + name + "/" + std::to_string(n)).c_str(),
            [function, pair](benchmark::State& state) { function(state, *pair); })
            ->Arg(n)
            ->UseRealTime();
      }
    };
    add("Put", &Put, {8, 4096, 65536, 1 << 20, 16 << 20, 64 << 20});
    add("Get", &Get, {8, 4096, 65536, 1 << 20, 16 << 20, 64 << 20});
    add("Echo", &Echo, {8, 4096});
  }
  benchmark::RegisterBenchmark("BM_Register/64MiB",
                               [p = pairs.front().get()](benchmark::State& s) { Register(s, *p); });
  return pairs;
}

}  // namespace
}  // namespace arcflow::transport

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  const auto pairs = arcflow::transport::RegisterAll();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
