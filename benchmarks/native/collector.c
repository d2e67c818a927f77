// A telemetry collector for benchmarks: it takes whatever is posted, keeps nothing of it, and says 200. A process a
// connection, blocking reads: exporters keep one connection for each signal.
//
// usage: collector
// Prints "port N" once it listens.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BYTES = 1 << 16 };

static const char ok[] = "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n";

// One request after another, none sent before the last one is answered, until the exporter hangs up.
static void serve(int fd) {
  static char data[BYTES + 1];
  for (;;) {
    size_t held = 0;
    char *end = NULL;
    while (!end) {
      ssize_t n = held < BYTES ? recv(fd, data + held, BYTES - held, 0) : 0;
      if (n <= 0) return;
      held += (size_t)n;
      data[held] = 0;
      end = strstr(data, "\r\n\r\n");
    }
    char *length = strcasestr(data, "\r\ncontent-length:");
    if (!length || length > end) return;
    long left = atol(length + strlen("\r\ncontent-length:")) - (long)(data + held - end - 4);
    while (left > 0) {
      ssize_t n = recv(fd, data, BYTES, 0);
      if (n <= 0) return;
      left -= n;
    }
    if (send(fd, ok, sizeof ok - 1, MSG_NOSIGNAL) < 0) return;
  }
}

int main(void) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t len = sizeof at;
  int listening = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(listening, (void *)&at, len) || listen(listening, 64) || getsockname(listening, (void *)&at, &len)) {
    perror("collector");
    return 1;
  }
  signal(SIGCHLD, SIG_IGN);
  printf("port %d\n", ntohs(at.sin_port));
  fflush(stdout);
  for (;;) {
    int fd = accept(listening, NULL, NULL);
    if (fd < 0) continue;
    if (!fork()) {
      serve(fd);
      _exit(0);
    }
    close(fd);
  }
}
