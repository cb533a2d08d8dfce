// SPDX-License-Identifier: GPL-3.0-or-later
// Where VMs connect: a listening socket with a thread, and QEMU's handshake.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "dom.h"

struct ctx {
	kvmi_new_guest_cb accept_cb;
	kvmi_handshake_cb hsk_cb;
	void *cb_ctx;
	int fd;
	int stop[2];
	bool started;
	pthread_t thread;
};

// Version and features, before anybody is told of the VM.
static int version(struct dom *dom)
{
	struct kvmi_get_version_reply reply = { 0 };

	if (ask(dom, KVMI_GET_VERSION, NULL, 0, &reply, sizeof(__u64), sizeof(reply), NULL))
		return -1;
	if (reply.version < 1)
		return dom_break(dom, EPROTO);
	dom->version = reply.version;
	dom->features = reply.features;
	return 0;
}

static int handshake(struct ctx *ctx, struct dom *dom)
{
	struct kvmi_introspector2qemu intro = { .struct_size = sizeof(intro) };
	struct kvmi_qemu2introspector *hello = &dom->hello;
	struct iovec part = { &intro, sizeof(intro) };
	size_t size, known;
	char rest;

	if (dom_read(dom, &hello->struct_size, sizeof(hello->struct_size), dom->patience))
		return -1;
	size = hello->struct_size;
	if (size < offsetof(struct kvmi_qemu2introspector, name) || size > 65536)
		return dom_break(dom, EPROTO);
	known = size < sizeof(*hello) ? size : sizeof(*hello);
	hello->struct_size = known;
	if (dom_read(dom, (char *)hello + sizeof(hello->struct_size), known - sizeof(hello->struct_size),
		     dom->patience))
		return -1;
	hello->name[sizeof(hello->name) - 1] = 0;
	for (; size > known; size--)
		if (dom_read(dom, &rest, 1, dom->patience))
			return -1;
	if (ctx->hsk_cb && ctx->hsk_cb(hello, &intro, ctx->cb_ctx) < 0)
		return -1;
	return dom_send(dom, &part, 1);
}

static void serve(struct ctx *ctx, int fd)
{
	const char *patience = getenv("VMTREE_KVMI_PATIENCE");
	struct dom *dom = calloc(1, sizeof(*dom));

	if (!dom) {
		close(fd);
		return;
	}
	dom->fd = fd;
	dom->patience = patience && atoi(patience) > 0 ? atoi(patience) : PATIENCE;
	pthread_mutex_init(&dom->lock, NULL);
	pthread_mutex_init(&dom->queue_lock, NULL);
	if (handshake(ctx, dom) || version(dom) || ctx->accept_cb(dom, &dom->hello.uuid, ctx->cb_ctx))
		kvmi_domain_close(dom, true);
}

static void *listener(void *arg)
{
	struct ctx *ctx = arg;

	for (;;) {
		struct pollfd both[2] = { { .fd = ctx->fd, .events = POLLIN },
					  { .fd = ctx->stop[0], .events = POLLIN } };
		int fd;

		if (poll(both, 2, -1) < 0) {
			if (errno == EINTR)
				continue;
			break;
		}
		if (both[1].revents)
			break;
		fd = accept4(ctx->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd >= 0)
			serve(ctx, fd);
		else if (errno != EINTR && errno != ECONNABORTED)
			break;
	}
	return NULL;
}

static bool listen_at(struct ctx *ctx, const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	if (!path || !*path || strlen(path) >= sizeof(address.sun_path)) {
		errno = EINVAL;
		return false;
	}
	strcpy(address.sun_path, path);
	if (unlink(path) && errno != ENOENT)
		return false;
	ctx->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	return ctx->fd >= 0 && !bind(ctx->fd, (struct sockaddr *)&address, sizeof(address)) &&
	       !listen(ctx->fd, 0);
}

void *kvmi_init_unix_socket(const char *path, kvmi_new_guest_cb accept_cb, kvmi_handshake_cb hsk_cb,
			    void *cb_ctx)
{
	struct ctx *ctx = accept_cb ? calloc(1, sizeof(*ctx)) : NULL;
	int error;

	if (!ctx)
		return NULL;
	*ctx = (struct ctx){ .accept_cb = accept_cb, .hsk_cb = hsk_cb, .cb_ctx = cb_ctx, .fd = -1, .stop = { -1, -1 } };
	if (!pipe(ctx->stop) && listen_at(ctx, path)) {
		ctx->started = !pthread_create(&ctx->thread, NULL, listener, ctx);
		if (ctx->started)
			return ctx;
	}
	error = errno;
	kvmi_uninit(ctx);
	errno = error;
	return NULL;
}

// The lab has no VSOCK.
void *kvmi_init_vsock(unsigned int port, kvmi_new_guest_cb accept_cb, kvmi_handshake_cb hsk_cb, void *cb_ctx)
{
	(void)port, (void)accept_cb, (void)hsk_cb, (void)cb_ctx;
	errno = EOPNOTSUPP;
	return NULL;
}

void kvmi_uninit(void *c)
{
	struct ctx *ctx = c;

	if (!ctx)
		return;
	if (ctx->started && write(ctx->stop[1], "", 1) == 1)
		pthread_join(ctx->thread, NULL);
	for (int i = 0; i < 2; i++)
		if (ctx->stop[i] >= 0)
			close(ctx->stop[i]);
	if (ctx->fd >= 0)
		close(ctx->fd);
	free(ctx);
}

void kvmi_close(void *c)
{
	struct ctx *ctx = c;

	if (ctx && ctx->fd >= 0) {
		close(ctx->fd);
		ctx->fd = -1;
	}
}

void kvmi_domain_close(void *d, bool do_shutdown)
{
	struct kvmi_dom_event *event;
	struct dom *dom = d;

	if (!dom)
		return;
	if (do_shutdown)
		shutdown(dom->fd, SHUT_RDWR);
	close(dom->fd);
	while ((event = dom->first)) {
		dom->first = event->next;
		free(event);
	}
	pthread_mutex_destroy(&dom->lock);
	pthread_mutex_destroy(&dom->queue_lock);
	free(dom);
}

bool kvmi_domain_is_connected(const void *d)
{
	return !((const struct dom *)d)->gone;
}

void kvmi_domain_name(const void *d, char *dest, size_t size)
{
	const struct dom *dom = d;

	if (!size)
		return;
	strncpy(dest, dom->hello.name, size - 1);
	dest[size - 1] = 0;
}

int kvmi_connection_fd(const void *d)
{
	return ((const struct dom *)d)->fd;
}
