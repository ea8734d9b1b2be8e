// SPDX-License-Identifier: Apache-2.0
// Lobby: rank 0 gathers contacts, the others bring theirs and wait for all.
#include "arcflow/collective/lobby.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>

#include "arcflow/base/hex.h"
#include "arcflow/base/log.h"
#include "arcflow/collective/layout.h"
#include "arcflow/collective/wide_group.h"

namespace arcflow::collective {
namespace {

using Json = nlohmann::json;
using EndpointPtr = std::shared_ptr<transport::Endpoint>;

constexpr int kLobbyProtocol = 1;
constexpr transport::Channel kJoinChannel = 1;    // → rank 0
constexpr transport::Channel kAnswerChannel = 2;  // rank 0 →
constexpr std::size_t kMaxGroupName = 4096;
constexpr std::size_t kMaxGroups = 256;  // that others have asked for and this process has not
constexpr std::chrono::milliseconds kLobbyLook{50};

Json ToJson(const Contact& contact) {
  return Json::array({ToHex(contact.address), ToHex(contact.region.Serialize())});
}

Result<Contact> ContactFrom(const Json& json) {
  if (!json.is_array() || json.size() != 2 || !json[0].is_string() || !json[1].is_string()) {
    return InvalidArgument("a rank's contact is none");
  }
  Contact contact;
  ARC_ASSIGN(contact.address, FromHex(json[0].get_ref<const std::string&>()));
  ARC_ASSIGN(const std::string region, FromHex(json[1].get_ref<const std::string&>()));
  ARC_ASSIGN(contact.region, transport::RemoteRegion::Parse(region));
  return contact;
}

/// What rank 0 and the others must see alike.
struct Request {
  std::string group;
  int rank = -1;
  std::vector<int> hosts;
  Contact contact;
};

std::string TextOf(const Request& request) {
  return Json{{"op", "join"},           {"protocol", kLobbyProtocol},
              {"group", request.group}, {"rank", request.rank},
              {"hosts", request.hosts}, {"contact", ToJson(request.contact)}}
      .dump();
}

Result<Request> RequestFrom(const Json& json) {
  try {
    if (json.at("op") != "join" || json.at("protocol") != kLobbyProtocol) {
      return InvalidArgument("a process of another version of arcflow");
    }
    Request request;
    request.group = json.at("group").get<std::string>();
    request.rank = json.at("rank").get<int>();
    request.hosts = json.at("hosts").get<std::vector<int>>();
    ARC_ASSIGN(request.contact, ContactFrom(json.at("contact")));
    if (request.group.size() > kMaxGroupName || request.rank < 1 ||
        static_cast<std::size_t>(request.rank) >= request.hosts.size()) {
      return InvalidArgument("a membership that cannot be");
    }
    return request;
  } catch (const Json::exception& error) {
    return InvalidArgument(std::string("a request that cannot be read: ") + error.what());
  }
}

Json Parse(std::span<const std::byte> bytes) {
  const auto* const text = reinterpret_cast<const char*>(bytes.data());
  return Json::parse(text, text + bytes.size(), nullptr, false);
}

Status Say(const EndpointPtr& to, transport::Channel channel, const std::string& text) {
  return to->Send(channel, std::as_bytes(std::span(text)));
}

}  // namespace

struct Lobby::State {
  struct Guest {
    Request request;
    EndpointPtr from;  // null: a rank of this very process
  };
  using Contacts = Result<std::vector<Contact>>;

  transport::ContextOptions options;
  std::string address;
  std::atomic<void (*)(Moment)> probe{nullptr};

  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::string, std::map<int, Guest>> guests;       // by group and rank
  std::map<std::pair<std::string, int>, Contacts> answers;  // to ranks of this process that wait
  std::map<std::pair<std::string, int>, bool> waiting;

  std::unique_ptr<transport::Context> context;  // last: its threads use all the rest

  void OnJoin(const EndpointPtr& from, std::span<const std::byte> bytes);
  void OnAnswer(std::span<const std::byte> bytes);
  Status Admit(Guest guest);
  void Answer(const Guest& guest, const Contacts& contacts);
  Contacts Lead(const WideMembership& m, const Contact& own, const Deadline& deadline);
  Contacts Follow(const WideMembership& m, const Contact& own, const Deadline& deadline);
  Contacts AwaitAnswer(const WideMembership& m, const EndpointPtr& leader,
                       const Deadline& deadline);
};

Result<std::unique_ptr<Lobby>> Lobby::Open(const transport::ContextOptions& options) {
  auto state = std::make_unique<State>();
  State* const raw = state.get();
  raw->options = options;
  transport::ContextOptions small = options;  // a few words for each group
  small.io_threads = 1;
  small.tcp_connections = 1;
  ARC_ASSIGN(raw->context, transport::Context::Create(small));
  raw->address = ToHex(raw->context->address());
  raw->context->Handle(kJoinChannel, [raw](const EndpointPtr& from, std::span<const std::byte> b) {
    raw->OnJoin(from, b);
  });
  raw->context->Handle(kAnswerChannel, [raw](const EndpointPtr&, std::span<const std::byte> b) {
    raw->OnAnswer(b);
  });
  return std::unique_ptr<Lobby>(new Lobby(std::move(state)));
}

Lobby::Lobby(std::unique_ptr<State> state) : state_(std::move(state)) {}
Lobby::~Lobby() { state_->context.reset(); }

const std::string& Lobby::address() const { return state_->address; }
void Lobby::SetProbe(void (*probe)(Moment)) { state_->probe.store(probe); }

Result<std::shared_ptr<Engine>> Lobby::Join(Hub& hub, const WideMembership& m, Deadline deadline) {
  ARC_ASSIGN(const Layout layout, Layout::Make(m.hosts, m.rank));
  if (m.group.empty() || m.group.size() > kMaxGroupName || m.lobbies.size() != m.hosts.size() ||
      m.hubs.size() != m.hosts.size()) {
    return InvalidArgument("a membership of group '" + m.group.substr(0, 80) + "' cannot be");
  }
  ARC_ASSIGN(auto group, WideGroup::Open(layout, state_->options, state_->probe.load()));
  auto contacts = m.rank == 0 ? state_->Lead(m, group->contact(), deadline)
                              : state_->Follow(m, group->contact(), deadline);
  if (!contacts.ok()) return contacts.status();
  group->Introduce(*contacts);
  if (m.rank == 0) {
    const std::lock_guard lock(state_->mutex);
    auto node = state_->guests.extract(m.group);
    for (auto& [rank, guest] : node.mapped()) state_->Answer(guest, contacts);
  }
  std::shared_ptr<Engine> local;
  if (layout.local_ranks() > 1) {
    const int leader = layout.members(layout.host())[0];
    // Ranks of one host have a group of their own among them.
    const Membership within{m.group + "@" + std::to_string(layout.host()),
                            m.hubs[static_cast<std::size_t>(leader)], layout.local_rank(),
                            layout.local_ranks()};
    ARC_ASSIGN(local, hub.Join(within, deadline));
  }
  ARC_TRY(group->Meet(std::move(local), deadline));
  return std::shared_ptr<Engine>(std::move(group));
}

// ---- rank 0 ----

/// Contacts of all, once all have come; they stay in `guests` to be answered.
Lobby::State::Contacts Lobby::State::Lead(const WideMembership& m, const Contact& own,
                                          const Deadline& deadline) {
  std::unique_lock lock(mutex);
  const auto ranks = static_cast<int>(m.hosts.size());
  std::string missing;
  for (;;) {
    missing.clear();
    auto& come = guests[m.group];
    std::erase_if(come, [](const auto& each) {  // who gave up meanwhile
      return each.second.from != nullptr && !each.second.from->status().ok();
    });
    for (int r = 1; r < ranks; ++r) {
      if (!come.contains(r)) missing += (missing.empty() ? "" : ", ") + std::to_string(r);
    }
    if (missing.empty() || deadline.expired()) break;
    changed.wait_for(lock, kLobbyLook);
  }
  Status failed;
  if (!missing.empty()) {
    failed = DeadlineExceeded("ranks " + missing + " did not come to group '" + m.group + "'");
  }
  std::vector<Contact> contacts{own};
  for (auto& [rank, guest] : guests[m.group]) {
    contacts.push_back(guest.request.contact);
    if (failed.ok() && guest.request.hosts != m.hosts) {
      failed = InvalidArgument("rank " + std::to_string(rank) + " sees the hosts of group '" +
                               m.group + "' otherwise than rank 0");
    }
  }
  if (failed.ok()) return contacts;
  auto node = guests.extract(m.group);
  for (auto& [rank, guest] : node.mapped()) Answer(guest, failed);
  return failed;
}

/// Requires the lock.
void Lobby::State::Answer(const Guest& guest, const Contacts& contacts) {
  const std::pair<std::string, int> who{guest.request.group, guest.request.rank};
  if (guest.from == nullptr) {
    if (waiting.contains(who)) answers.insert_or_assign(who, contacts);
    changed.notify_all();
    return;
  }
  Json answer = {{"op", "open"}, {"group", who.first}, {"rank", who.second}};
  if (contacts.ok()) {
    Json list = Json::array();
    for (const Contact& each : *contacts) list.push_back(ToJson(each));
    answer["contacts"] = std::move(list);
  } else {
    answer["op"] = "refused";
    answer["code"] = static_cast<int>(contacts.status().code());
    answer["message"] = contacts.status().message();
  }
  // One that is gone by now does not connect, and the group is not made.
  (void)Say(guest.from, kAnswerChannel, answer.dump()).ok();
}

Status Lobby::State::Admit(Guest guest) {
  const std::lock_guard lock(mutex);
  if (guests.size() >= kMaxGroups && !guests.contains(guest.request.group)) {
    std::erase_if(guests, [](const auto& group) {  // whoever asked has given up
      return std::none_of(group.second.begin(), group.second.end(), [](const auto& each) {
        return each.second.from == nullptr || each.second.from->status().ok();
      });
    });
    if (guests.size() >= kMaxGroups) return ResourceExhausted("too many groups are being made");
  }
  auto& place = guests[guest.request.group];
  place.insert_or_assign(guest.request.rank, std::move(guest));
  changed.notify_all();
  return Status::Ok();
}

void Lobby::State::OnJoin(const EndpointPtr& from, std::span<const std::byte> bytes) {
  auto request = RequestFrom(Parse(bytes));
  Status admitted = request.status();
  if (request.ok()) admitted = Admit({*std::move(request), from});
  if (!admitted.ok()) {
    Log(LogLevel::kInfo, "collective: turned away a process: " + admitted.ToString());
  }
}

// ---- the others ----

Lobby::State::Contacts Lobby::State::Follow(const WideMembership& m, const Contact& own,
                                            const Deadline& deadline) {
  const Request request{m.group, m.rank, m.hosts, own};
  const std::pair<std::string, int> who{m.group, m.rank};
  {
    const std::lock_guard lock(mutex);
    if (!waiting.try_emplace(who, true).second) {
      return InvalidArgument("group '" + m.group + "' is being joined already");
    }
  }
  EndpointPtr leader;
  Status asked;
  if (m.lobbies[0] == address) {
    asked = Admit({request, nullptr});
  } else {
    auto where = FromHex(m.lobbies[0]);
    auto connected =
        where.ok() ? context->Connect(*where, deadline) : Result<EndpointPtr>(where.status());
    asked = connected.status();
    if (connected.ok()) leader = *connected;
    if (connected.ok()) asked = Say(leader, kJoinChannel, TextOf(request));
  }
  Contacts contacts = asked.ok() ? AwaitAnswer(m, leader, deadline) : Contacts(asked);
  const std::lock_guard lock(mutex);
  waiting.erase(who);
  answers.erase(who);
  return contacts.ok() ? contacts : Contacts(contacts.status().WithContext("rank 0"));
}

Lobby::State::Contacts Lobby::State::AwaitAnswer(const WideMembership& m, const EndpointPtr& leader,
                                                 const Deadline& deadline) {
  std::unique_lock lock(mutex);
  for (;;) {
    const auto found = answers.find({m.group, m.rank});
    if (found != answers.end()) {
      if (found->second.ok() && found->second->size() != m.hosts.size()) {
        return InvalidArgument("counts the group's ranks otherwise");
      }
      return found->second;
    }
    if (leader != nullptr && !leader->status().ok()) {
      return Unavailable("has left while the group was made: " +
                         std::string(leader->status().message()));
    }
    if (deadline.expired()) {
      return DeadlineExceeded("did not make group '" + m.group + "' in time");
    }
    changed.wait_for(lock, kLobbyLook);
  }
}

void Lobby::State::OnAnswer(std::span<const std::byte> bytes) {
  const Json json = Parse(bytes);
  try {
    const std::pair<std::string, int> who{json.at("group").get<std::string>(),
                                          json.at("rank").get<int>()};
    Contacts contacts = std::vector<Contact>();
    if (json.at("op") == "open") {
      for (const Json& each : json.at("contacts")) {
        auto contact = ContactFrom(each);
        if (!contact.ok()) {
          contacts = contact.status();
          break;
        }
        contacts->push_back(*std::move(contact));
      }
    } else {
      const int code = json.at("code").get<int>();
      contacts = Status(code > 0 && code <= 16 ? static_cast<Code>(code) : Code::kInternal,
                        json.at("message").get<std::string>());
    }
    const std::lock_guard lock(mutex);
    if (waiting.contains(who)) answers.insert_or_assign(who, std::move(contacts));
    changed.notify_all();
  } catch (const Json::exception& error) {
    Log(LogLevel::kInfo, std::string("collective: an answer that cannot be read: ") + error.what());
  }
}

}  // namespace arcflow::collective
