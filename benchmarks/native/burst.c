// Requests that all arrive at once, each on a connection of its own, and how long each answer's head takes.
//
// usage: burst PORT COUNT HOLD_S [HEADER ...]     prints one line of JSON
// Connections are opened and their requests sent as fast as the kernel takes them. Once every one has been answered, or
// has gone, or nothing has come for two seconds, those that were served stay open for HOLD_S more; then all are reset.
// A head is timed from just before its own request was sent; "over_ms" counts from the first connection's opening.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_BYTES = 1024, EVENTS = 512, QUIET_MS = 2000, EACH_TURN = 32 };

typedef struct {
  int fd, status, head_len;
  uint64_t asked_ns, told_ns;
  char head[HEAD_BYTES + 1];
} client;

static client *clients;
static int count, answered, lost, poller;
static struct sockaddr_in server;
static char request[8192];
static size_t request_len;

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void lose(client *c) {
  if (!c->status) lost++;
  epoll_ctl(poller, EPOLL_CTL_DEL, c->fd, NULL);
  close(c->fd);
  c->fd = -1;
}

static void ask(client *c) {
  int one = 1;
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  c->asked_ns = now_ns();
  if (connect(c->fd, (void *)&server, sizeof server) || send(c->fd, request, request_len, MSG_NOSIGNAL) < 0) {
    lost++;
    close(c->fd);
    c->fd = -1;
    return;
  }
  fcntl(c->fd, F_SETFL, O_NONBLOCK);
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
  epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
}

static void on_readable(client *c) {
  static char data[1 << 16];
  ssize_t n = recv(c->fd, data, sizeof data, 0);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) return lose(c);
  if (c->status) return;
  size_t room = (size_t)(HEAD_BYTES - c->head_len), taken = (size_t)n < room ? (size_t)n : room;
  memcpy(c->head + c->head_len, data, taken);
  c->head_len += (int)taken;
  c->head[c->head_len] = 0;
  if (!strstr(c->head, "\r\n\r\n")) return;
  c->status = atoi(c->head + 9);
  c->told_ns = now_ns();
  answered++;
}

static void hear(int wait_ms) {
  struct epoll_event events[EVENTS];
  int n = epoll_wait(poller, events, EVENTS, wait_ms);
  for (int i = 0; i < n; i++) on_readable(events[i].data.ptr);
}

static int by_size(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

// How many were answered so, when the last of them was, and how long they took.
static void tell(const char *name, int status, uint64_t began_ns) {
  double *took = calloc((size_t)count + 1, sizeof *took), over = 0;
  int n = 0;
  for (int i = 0; i < count; i++) {
    if (clients[i].status != status) continue;
    double last = (double)(clients[i].told_ns - began_ns) / 1e6;
    took[n++] = (double)(clients[i].told_ns - clients[i].asked_ns) / 1e6;
    if (last > over) over = last;
  }
  qsort(took, (size_t)n, sizeof *took, by_size);
  printf("\"%s\":{\"count\":%d,\"over_ms\":%.3f,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"max_ms\":%.3f},", name, n, over,
         n ? took[n / 2] : 0, n ? took[n * 99 / 100] : 0, n ? took[n - 1] : 0);
  free(took);
}

static void write_request(int port, int headers, char **header) {
  static const char body[] = "{\"model\":\"bench\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}";
  int n = sprintf(request, "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n", port);
  for (int i = 0; i < headers; i++) n += snprintf(request + n, 1024, "%s\r\n", header[i]);
  n += sprintf(request + n, "Content-Length: %zu\r\n\r\n%s", sizeof body - 1, body);
  request_len = (size_t)n;
}

int main(int argc, char **argv) {
  if (argc < 4 || argc > 7) return 2;
  count = atoi(argv[2]);
  uint64_t hold_ns = (uint64_t)(atof(argv[3]) * 1e9);
  server.sin_family = AF_INET;
  server.sin_port = htons((uint16_t)atoi(argv[1]));
  server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  write_request(atoi(argv[1]), argc - 4, argv + 4);
  poller = epoll_create1(0);
  clients = calloc((size_t)count, sizeof *clients);
  if (!clients) return 1;
  uint64_t began_ns = now_ns(), sent_ns;
  for (int i = 0; i < count; i++) {
    ask(&clients[i]);
    if (i % EACH_TURN == 0) hear(0);
  }
  sent_ns = now_ns();
  for (int before = -1; answered + lost < count && answered + lost != before;) {
    uint64_t quiet_ns = now_ns() + (uint64_t)QUIET_MS * 1000000u;
    before = answered + lost;
    while (answered + lost == before && now_ns() < quiet_ns) hear(50);
  }
  for (uint64_t end_ns = now_ns() + hold_ns; now_ns() < end_ns;) hear(50);
  int gone = 0;
  for (int i = 0; i < count; i++) gone += clients[i].status == 200 && clients[i].fd < 0;
  printf("{");
  tell("served", 200, began_ns);
  tell("refused", 503, began_ns);
  printf("\"sent_ms\":%.3f,\"answered\":%d,\"lost\":%d,\"broken_off\":%d}\n", (double)(sent_ns - began_ns) / 1e6, answered,
         count - answered, gone);
  struct linger reset = {1, 0};
  for (int i = 0; i < count; i++) {
    if (clients[i].fd < 0) continue;
    setsockopt(clients[i].fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(clients[i].fd);
  }
  return 0;
}
