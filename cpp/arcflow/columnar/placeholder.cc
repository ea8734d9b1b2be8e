// SPDX-License-Identifier: Apache-2.0
// Placeholder until the layer has sources; delete with the first one.
