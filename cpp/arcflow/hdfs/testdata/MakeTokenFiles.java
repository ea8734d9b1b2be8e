// SPDX-License-Identifier: Apache-2.0
// Writes the golden files of testdata/token_file_fuzz with Hadoop's own classes:
//   java -cp "$(cat classpath)" cpp/arcflow/hdfs/testdata/MakeTokenFiles.java cpp/arcflow/hdfs/testdata/token_file_fuzz
// where classpath comes from tools/hadoop/pom.xml (mvn dependency:build-classpath).
import java.io.DataOutputStream;
import java.io.File;
import java.io.FileOutputStream;
import java.nio.file.Files;
import org.apache.hadoop.io.Text;
import org.apache.hadoop.security.Credentials;
import org.apache.hadoop.security.token.Token;

public class MakeTokenFiles {
  public static void main(String[] args) throws Exception {
    Token<?> hdfs = new Token<>("i".repeat(200).getBytes(), "secret".getBytes(),
        new Text("HDFS_DELEGATION_TOKEN"), new Text("ha-hdfs:ns1"));
    Token<?> other = new Token<>("x".getBytes(), "y".getBytes(),
        new Text("YARN_AM_RM_TOKEN"), new Text("10.0.0.1:8030"));
    Credentials credentials = new Credentials();
    credentials.addToken(new Text("ha-hdfs:ns1"), hdfs);
    credentials.addToken(new Text("rm"), other);
    for (Credentials.SerializedFormat form : Credentials.SerializedFormat.values()) {
      String name = form == Credentials.SerializedFormat.WRITABLE ? "writable.bin" : "protobuf.bin";
      try (DataOutputStream out = new DataOutputStream(new FileOutputStream(new File(args[0], name)))) {
        credentials.writeTokenStorageToStream(out, form);
      }
    }
    Files.writeString(new File(args[0], "url_string.txt").toPath(), hdfs.encodeToUrlString() + "\n");
  }
}
