import java.net.ConnectException;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** Get HOST PORT CLOSED-PORT: the peer's address, what a closed port gives, and the page. */
class Get {
    public static void main(String[] arguments) throws Exception {
        String host = arguments[0];
        int port = Integer.parseInt(arguments[1]);
        try (Socket socket = new Socket(host, port)) {
            System.out.println("peer " + ((InetSocketAddress) socket.getRemoteSocketAddress()).getAddress().getHostAddress());
        }
        try (Socket socket = new Socket(host, Integer.parseInt(arguments[2]))) {
            System.out.println("closed connected");
        } catch (ConnectException refusal) {
            System.out.println("closed " + (refusal.getMessage().contains("refused") ? "refused" : refusal));
        }
        HttpRequest request = HttpRequest.newBuilder(URI.create("http://" + host + ":" + port + "/")).build();
        System.out.println(HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body());
    }
}
