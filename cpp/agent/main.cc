// SPDX-License-Identifier: Apache-2.0
// The agent executable: everything it does is in control/agent.h.
#include <sys/resource.h>

#include "arcflow/control/agent.h"

int main(int argc, char* argv[]) {
  // Each segment of the feed logs costs a descriptor (docs/design/feed.md): the usual soft limit of
  // 1024 is some GB of rows.
  rlimit descriptors{};
  if (::getrlimit(RLIMIT_NOFILE, &descriptors) == 0 &&
      descriptors.rlim_cur < descriptors.rlim_max) {
    descriptors.rlim_cur = descriptors.rlim_max;
    (void)::setrlimit(RLIMIT_NOFILE, &descriptors);
  }
  return arcflow::control::AgentMain(argc, argv);
}
