/* SPDX-License-Identifier: Apache-2.0
 * Open MPI's all-reduce of float32, for comparison: allreduce <bytes> <steps>; rank 0 prints the
 * median of the steps in milliseconds. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

static int compare(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  if (argc != 3) MPI_Abort(MPI_COMM_WORLD, 2);
  const long count = atol(argv[1]) / 4 > 0 ? atol(argv[1]) / 4 : 1;
  const int steps = atoi(argv[2]);
  int rank;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  float* in = malloc(count * sizeof(float));
  float* out = malloc(count * sizeof(float));
  double* times = malloc(steps * sizeof(double));
  if (in == NULL || out == NULL || times == NULL) MPI_Abort(MPI_COMM_WORLD, 3);
  for (long i = 0; i < count; ++i) in[i] = (float)(i % 1000) + rank;
  for (int i = -3; i < steps; ++i) {
    MPI_Barrier(MPI_COMM_WORLD);
    const double start = MPI_Wtime();
    MPI_Allreduce(in, out, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    if (i >= 0) times[i] = MPI_Wtime() - start;
  }
  qsort(times, steps, sizeof(double), compare);
  if (rank == 0) printf("%.6f\n", times[steps / 2] * 1e3);
  MPI_Finalize();
  return 0;
}
