/* The process that keeps a pod's namespaces open: it adopts orphans and waits to be told to end. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void finish(int signal_number)
{
	(void)signal_number;
	_exit(0);
}

static void reap(int signal_number)
{
	(void)signal_number;
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

int main(void)
{
	signal(SIGTERM, finish);
	signal(SIGINT, finish);
	signal(SIGCHLD, reap);
	for (;;)
		pause();
}
