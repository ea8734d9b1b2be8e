// SPDX-License-Identifier: Apache-2.0
// Streams that were written to are waited for, when a function comes and not before.
#include "plugins/tensorflow/transport/ordered_clients.h"

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "plugins/tensorflow/transport/cancelable_wait.h"
#include "tensorflow/core/distributed_runtime/call_options.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_def.pb.h"
#include "tensorflow/core/protobuf/eager_service.pb.h"

namespace arcflow::tf {
namespace {

using tensorflow::CallOptions;
using tensorflow::StatusCallback;
using tensorflow::core::RefCountPtr;
using tensorflow::eager::EagerClient;
using tensorflow::eager::EagerClientCache;
using tensorflow::eager::EnqueueRequest;
using tensorflow::eager::EnqueueResponse;

RefCountPtr<EagerClient> Shared(EagerClient* client) {
  client->Ref();
  return RefCountPtr<EagerClient>(client);
}

/// Whether it changes a resource and answers before it has: it has no results.
bool Writes(const tensorflow::eager::Operation& operation) {
  if (operation.is_function()) return false;
  const std::string& name = operation.name();
  // These wait for what a later function may do.
  if (name.starts_with("Queue") || name.starts_with("Barrier")) return false;
  const tensorflow::OpDef* def = nullptr;
  if (!tensorflow::OpRegistry::Global()->LookUpOpDef(name, &def).ok()) return false;
  if (def->output_arg_size() != 0) return false;
  for (const auto& input : def->input_arg()) {
    if (input.type() == tensorflow::DT_RESOURCE) return true;
  }
  return false;
}

bool Writes(const EnqueueRequest& request) {
  for (const auto& item : request.queue()) {
    if (item.has_operation() && Writes(item.operation())) return true;
  }
  return false;
}

bool RunsFunction(const EnqueueRequest& request) {
  for (const auto& item : request.queue()) {
    if (item.has_operation() && item.operation().is_function()) return true;
  }
  return false;
}

/// Streams that were waited for together, and who waits for that.
class Round {
 public:
  explicit Round(std::size_t left) : left_(left) {}

  void OneIsDone(const absl::Status& status) {
    std::vector<StatusCallback> waiting;
    absl::Status found;
    {
      const std::lock_guard lock(mutex_);
      status_.Update(status);
      if (--left_ > 0) return;
      waiting.swap(waiting_);
      found = status_;
    }
    for (const auto& then : waiting) then(found);
  }

  /// `then` gets the first error; called here and now when the round is over.
  void WhenOver(StatusCallback then) {
    absl::Status found;
    {
      const std::lock_guard lock(mutex_);
      if (left_ > 0) {
        waiting_.push_back(std::move(then));
        return;
      }
      found = status_;
    }
    then(found);
  }

  bool over() const {
    const std::lock_guard lock(mutex_);
    return left_ == 0;
  }

 private:
  mutable std::mutex mutex_;
  std::size_t left_;
  absl::Status status_;
  std::vector<StatusCallback> waiting_;
};

/// What was written through the clients of one cache and is not known to have run.
class Writing {
 public:
  void Note(const std::string& target, EagerClient* client, std::uint64_t context,
            bool enable_streaming) {
    const std::lock_guard lock(mutex_);
    streams_[{target, context}] = {Shared(client), enable_streaming};
  }

  /// Calls `then` when what was noted before has run, or failed; at once when there is nothing.
  void WhenRun(StatusCallback then) {
    std::map<Key, Stream> streams;
    std::shared_ptr<Round> round;
    std::shared_ptr<Round> before;
    {
      const std::lock_guard lock(mutex_);
      if (last_ != nullptr && last_->over()) last_.reset();
      if (streams_.empty()) {
        round = last_;
      } else {
        before = last_;
        streams.swap(streams_);
        last_ = round = std::make_shared<Round>(streams.size() + 1);
      }
    }
    if (round == nullptr) return then(absl::OkStatus());
    round->WhenOver(std::move(then));
    if (streams.empty()) return;
    for (const auto& [key, stream] : streams) WaitFor(key.second, stream, round);
    // The error of a round is for those who wait for it.
    const auto go_on = [round](const absl::Status&) { round->OneIsDone(absl::OkStatus()); };
    before == nullptr ? go_on(absl::OkStatus()) : before->WhenOver(go_on);
  }

 private:
  using Key = std::pair<std::string, std::uint64_t>;  // target, context
  struct Stream {
    RefCountPtr<EagerClient> client;
    bool enable_streaming = true;
  };

  static void WaitFor(std::uint64_t context, const Stream& stream,
                      const std::shared_ptr<Round>& round) {
    EnqueueRequest request;
    request.set_context_id(context);
    request.add_queue()->mutable_sync_remote_executor_for_stream();
    const auto response = std::make_shared<EnqueueResponse>();
    stream.client->StreamingEnqueueAsync(
        stream.enable_streaming, nullptr, &request, response.get(),
        [response, round](const absl::Status& status) { round->OneIsDone(status); });
  }

  std::mutex mutex_;
  std::map<Key, Stream> streams_;
  std::shared_ptr<Round> last_;
};

class OrderedClient : public EagerClient {
 public:
  OrderedClient(std::string target, RefCountPtr<EagerClient> inner,
                std::shared_ptr<Writing> writing)
      : target_(std::move(target)), inner_(std::move(inner)), writing_(std::move(writing)) {}
  EagerClient* inner() const { return inner_.get(); }

  void StreamingEnqueueAsync(bool enable_streaming, CallOptions* options,
                             const EnqueueRequest* request, EnqueueResponse* response,
                             StatusCallback done) override {
    if (RunsFunction(*request)) {
      // The request is the caller's, and what comes next on this stream must not overtake it.
      absl::Status written;
      absl::Notification run;
      writing_->WhenRun([&](const absl::Status& status) {
        written = status;
        run.Notify();
      });
      run.WaitForNotification();
      if (!written.ok()) return done(written);
    }
    if (!Writes(*request)) {
      return inner_->StreamingEnqueueAsync(enable_streaming, options, request, response,
                                           std::move(done));
    }
    // Request and this may be gone as soon as `inner` has answered.
    const auto client = Shared(inner_.get());
    const auto writing = writing_;
    const std::string target = target_;
    const std::uint64_t context = request->context_id();
    client->StreamingEnqueueAsync(enable_streaming, options, request, response, std::move(done));
    writing->Note(target, client.get(), context, enable_streaming);
  }

  void RunComponentFunctionAsync(CallOptions* options,
                                 const tensorflow::eager::RunComponentFunctionRequest* request,
                                 tensorflow::eager::RunComponentFunctionResponse* response,
                                 StatusCallback done) override {
    // Request and response are there until `done` has been called; this may not be.
    const std::shared_ptr<EagerClient> inner(Shared(inner_.get()).release(),
                                             [](EagerClient* client) { client->Unref(); });
    WaitCancelably<absl::Status>(
        options, "arcflow: cancelled before what was written earlier had run",
        [&](StatusCallback run) { writing_->WhenRun(std::move(run)); },
        [=](const absl::Status& written) {
          if (!written.ok()) return done(written);
          inner->RunComponentFunctionAsync(options, request, response, done);
        },
        done);
  }

#define ARC_FORWARD(name)                                                                     \
  void name##Async(const tensorflow::eager::name##Request* request,                           \
                   tensorflow::eager::name##Response* answer, StatusCallback done) override { \
    inner_->name##Async(request, answer, std::move(done));                                    \
  }
  ARC_FORWARD(CreateContext)
  ARC_FORWARD(UpdateContext)
  ARC_FORWARD(WaitQueueDone)
  ARC_FORWARD(KeepAlive)
  ARC_FORWARD(CloseContext)
#undef ARC_FORWARD
  void CreateContextAsync(const tensorflow::eager::CreateContextRequest* request,
                          tensorflow::eager::CreateContextResponse* answer, StatusCallback done,
                          std::int64_t timeout_ms, int retries) override {
    inner_->CreateContextAsync(request, answer, std::move(done), timeout_ms, retries);
  }
  void EnqueueAsync(CallOptions* options, const EnqueueRequest* request, EnqueueResponse* response,
                    StatusCallback done) override {
    inner_->EnqueueAsync(options, request, response, std::move(done));
  }
  bool allow_multiple_pending_requests() const override {
    return inner_->allow_multiple_pending_requests();
  }

 private:
  const std::string target_;
  const RefCountPtr<EagerClient> inner_;
  const std::shared_ptr<Writing> writing_;
};

class OrderedClients : public EagerClientCache {
 public:
  explicit OrderedClients(std::unique_ptr<EagerClientCache> inner) : inner_(std::move(inner)) {}

  absl::Status GetClient(const std::string& target, RefCountPtr<EagerClient>* client) override {
    RefCountPtr<EagerClient> inner;
    if (absl::Status s = inner_->GetClient(target, &inner); !s.ok()) return s;
    if (inner == nullptr) {
      client->reset();
      return absl::OkStatus();
    }
    const std::lock_guard lock(mutex_);
    RefCountPtr<OrderedClient>& ours = clients_[target];
    if (ours == nullptr || ours->inner() != inner.get()) {
      ours.reset(new OrderedClient(target, std::move(inner), writing_));
    }
    *client = Shared(ours.get());
    return absl::OkStatus();
  }

 private:
  const std::unique_ptr<EagerClientCache> inner_;
  const std::shared_ptr<Writing> writing_ = std::make_shared<Writing>();
  std::mutex mutex_;
  // Kept, as TensorFlow's cache keeps its own: calls are under way when the last other reference
  // has gone.
  std::map<std::string, RefCountPtr<OrderedClient>> clients_;
};

}  // namespace

std::unique_ptr<EagerClientCache> NewOrderedClients(std::unique_ptr<EagerClientCache> inner) {
  return std::make_unique<OrderedClients>(std::move(inner));
}

}  // namespace arcflow::tf
