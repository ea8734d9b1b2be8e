// SPDX-License-Identifier: Apache-2.0
// The agent executable: everything it does is in control/agent.h.
#include "arcflow/control/agent.h"

int main(int argc, char* argv[]) { return arcflow::control::AgentMain(argc, argv); }
