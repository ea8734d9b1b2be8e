// SPDX-License-Identifier: Apache-2.0
// Streams that were written to are waited for, when a function comes and not before.
#include "plugins/tensorflow/transport/ordered_clients.h"

#include <algorithm>
#include <compare>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "plugins/tensorflow/transport/cancelable_wait.h"
#include "plugins/tensorflow/transport/task_name.h"
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

enum class Effect {
  kNone,
  kResource,  // changed, and no results: answered before it has run
  kVariable,  // a resource that functions of other tasks read too; tables count as well
};

Effect EffectOf(const tensorflow::eager::Operation& operation) {
  if (operation.is_function()) return Effect::kNone;
  const std::string& name = operation.name();
  // These wait for what a later function may do.
  if (name.starts_with("Queue") || name.starts_with("Barrier")) return Effect::kNone;
  const tensorflow::OpDef* def = nullptr;
  if (!tensorflow::OpRegistry::Global()->LookUpOpDef(name, &def).ok()) return Effect::kNone;
  if (def->output_arg_size() != 0) return Effect::kNone;
  bool changes = false;
  for (const auto& input : def->input_arg()) changes |= input.type() == tensorflow::DT_RESOURCE;
  if (!changes) return Effect::kNone;
  const bool variable = name.starts_with("Assign") || name.starts_with("Resource") ||
                        name.starts_with("LookupTable") || name.starts_with("InitializeTable");
  return variable ? Effect::kVariable : Effect::kResource;
}

Effect EffectOf(const EnqueueRequest& request) {
  Effect effect = Effect::kNone;
  for (const auto& item : request.queue()) {
    if (item.has_operation()) effect = std::max(effect, EffectOf(item.operation()));
  }
  return effect;
}

bool RunsFunction(const EnqueueRequest& request) {
  for (const auto& item : request.queue()) {
    if (item.has_operation() && item.operation().is_function()) return true;
  }
  return false;
}

/// A server's word that what was written before has run, and who waits for it.
class Answer {
 public:
  explicit Answer(Effect effect) : effect_(effect) {}
  /// Of all that it stands for.
  Effect effect() const { return effect_; }

  void Come(const absl::Status& status) {
    std::vector<StatusCallback> waiting;
    {
      const std::lock_guard lock(mutex_);
      status_ = status;
      waiting.swap(waiting_);
    }
    for (const auto& then : waiting) then(status);
  }
  /// Calls `then` when it has come; at once when it has already.
  void WhenThere(StatusCallback then) {
    {
      const std::lock_guard lock(mutex_);
      if (!status_) {
        waiting_.push_back(std::move(then));
        return;
      }
    }
    then(*status_);
  }
  bool there() const {
    const std::lock_guard lock(mutex_);
    return status_.has_value();
  }

 private:
  const Effect effect_;
  mutable std::mutex mutex_;
  std::optional<absl::Status> status_;  // set once
  std::vector<StatusCallback> waiting_;
};

/// Calls `then` with the first error when all answers have come. A task that cannot be reached is
/// no error here: those who need it find out.
void WhenAllThere(const std::vector<std::shared_ptr<Answer>>& answers, StatusCallback then) {
  struct Gathered {
    std::mutex mutex;
    std::size_t left;
    absl::Status first;
  };
  const auto all = std::make_shared<Gathered>();
  all->left = answers.size();
  for (const auto& answer : answers) {
    answer->WhenThere([all, then](const absl::Status& status) {
      absl::Status first;
      {
        const std::lock_guard lock(all->mutex);
        const bool unreachable = absl::IsUnavailable(status) || absl::IsCancelled(status) ||
                                 absl::IsAborted(status) || absl::IsDeadlineExceeded(status);
        if (!unreachable) all->first.Update(status);
        if (--all->left > 0) return;
        first = all->first;
      }
      then(first);
    });
  }
}

/// What was written through the clients of one cache and is not known to have run.
class Writing {
 public:
  void Note(const std::string& task, EagerClient* client, std::uint64_t context,
            bool enable_streaming, Effect effect) {
    const std::lock_guard lock(mutex_);
    Stream& stream = streams_[{task, client, context}];
    stream.client = Shared(client);
    stream.enable_streaming = enable_streaming;
    stream.unasked = std::max(stream.unasked, effect);
  }

  /// Calls `then` when all that was written to `task` has run, or failed; at once when there is
  /// nothing to wait for.
  void WhenRunAt(const std::string& task, StatusCallback then) {
    WhenRun([&](const Key& key, Effect) { return key.task == task; }, std::move(then));
  }
  /// As WhenRunAt, for variables of all other tasks.
  void WhenRunElsewhere(const std::string& task, StatusCallback then) {
    WhenRun([&](const Key& key,
                Effect effect) { return key.task != task && effect == Effect::kVariable; },
            std::move(then));
  }

 private:
  struct Key {
    std::string task;
    EagerClient* client;  // each has streams of its own, one a context
    std::uint64_t context;
    auto operator<=>(const Key&) const = default;
  };
  struct Stream {
    RefCountPtr<EagerClient> client;
    bool enable_streaming = true;
    Effect unasked = Effect::kNone;  // of what the server has not been asked about
    std::shared_ptr<Answer> last;    // to the last question, if there was one
  };
  struct Question {
    std::uint64_t context;
    RefCountPtr<EagerClient> client;
    bool enable_streaming;
    std::shared_ptr<Answer> answer;
  };

  void WhenRun(const std::function<bool(const Key&, Effect)>& concerns, StatusCallback then) {
    std::vector<Question> questions;
    std::vector<std::shared_ptr<Answer>> answers;
    {
      const std::lock_guard lock(mutex_);
      for (auto& [key, stream] : streams_) {
        Effect effect = stream.unasked;
        if (stream.last != nullptr && !stream.last->there()) {
          effect = std::max(effect, stream.last->effect());
        }
        if (effect == Effect::kNone || !concerns(key, effect)) continue;
        if (std::exchange(stream.unasked, Effect::kNone) != Effect::kNone) {
          stream.last = std::make_shared<Answer>(effect);  // comes after earlier ones of the stream
          questions.push_back(
              {key.context, Shared(stream.client.get()), stream.enable_streaming, stream.last});
        }
        answers.push_back(stream.last);
      }
    }
    if (answers.empty()) return then(absl::OkStatus());
    for (const Question& question : questions) Ask(question);
    WhenAllThere(answers, std::move(then));
  }

  /// By the request that TensorFlow has for its barriers.
  static void Ask(const Question& question) {
    EnqueueRequest request;
    request.set_context_id(question.context);
    request.add_queue()->mutable_sync_remote_executor_for_stream();
    const auto response = std::make_shared<EnqueueResponse>();
    question.client->StreamingEnqueueAsync(
        question.enable_streaming, nullptr, &request, response.get(),
        [response, answer = question.answer](const absl::Status& status) { answer->Come(status); });
  }

  std::mutex mutex_;
  std::map<Key, Stream> streams_;
};

class OrderedClient : public EagerClient {
 public:
  OrderedClient(const std::string& target, RefCountPtr<EagerClient> inner,
                std::shared_ptr<Writing> writing)
      : task_(TaskOf(target)), inner_(std::move(inner)), writing_(std::move(writing)) {}
  EagerClient* inner() const { return inner_.get(); }

  void StreamingEnqueueAsync(bool enable_streaming, CallOptions* options,
                             const EnqueueRequest* request, EnqueueResponse* response,
                             StatusCallback done) override {
    if (RunsFunction(*request)) {
      // The request is the caller's, and what comes next on this stream must not overtake it.
      absl::Status written;
      absl::Notification run;
      writing_->WhenRunElsewhere(task_, [&](const absl::Status& status) {
        written = status;
        run.Notify();
      });
      run.WaitForNotification();
      if (!written.ok()) return done(written);
    }
    const Effect effect = EffectOf(*request);
    if (effect == Effect::kNone) {
      return inner_->StreamingEnqueueAsync(enable_streaming, options, request, response,
                                           std::move(done));
    }
    // Request and this may be gone as soon as `inner` has answered.
    const auto client = Shared(inner_.get());
    const auto writing = writing_;
    const std::string task = task_;
    const std::uint64_t context = request->context_id();
    client->StreamingEnqueueAsync(enable_streaming, options, request, response, std::move(done));
    writing->Note(task, client.get(), context, enable_streaming, effect);
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
        [&](StatusCallback run) { writing_->WhenRunAt(task_, std::move(run)); },
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
  const std::string task_;  // TensorFlow asks for clients by it or by one of its devices
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
